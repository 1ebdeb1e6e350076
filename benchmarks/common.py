"""What all benchmark scripts share: options, token windows, tables, JSON.

    --model DIR --data DIR --calibration NAME,… --corpora NAME,… --window N --json FILE

DIR holds NAME.train.txt and NAME.test.txt. The protocol: text encoded with the model's own
tokenizer without special tokens; calibration on 32 windows at random offsets of the train part
(seed 233); evaluation on the first 64 windows of the test part, next-token loss inside each.
For calibration `generated` names windows that the model itself samples (seed 233); where it is
named, windows start with BOS if the tokenizer puts it at the start of a text, as in the recipes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from asvd_q import __version__
from asvd_q.budget.format import format_count
from asvd_q.budget.solving import BudgetResult, solve_budget
from asvd_q.compression import Calibration, compress
from asvd_q.evaluation.quality import TokenWindows, evaluate_quality
from asvd_q.evaluation.runners import model_runner
from asvd_q.files import write_text
from asvd_q.models import SourceModel
from asvd_q.models.assemble import Replaced
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.skeleton import Skeleton, build_skeleton
from asvd_q.plan import FloatType, Plan
from asvd_q.progress import silent
from asvd_q.recipe import CorpusSection, Recipe
from asvd_q.recipe.corpora import GENERATED
from asvd_q.report.tables import Table, print_table
from asvd_q.search import make_plan
from asvd_q.search.ranks import search_ranks
from asvd_q.statistics.corpora import Corpus, load_corpus
from asvd_q.statistics.generated import GeneratedText
from asvd_q.statistics.windows import calibration_windows, evaluation_windows
from asvd_q.store import Store, StoreHeader

__all__ = [
    "BATCH",
    "Bench",
    "Compressed",
    "Options",
    "finish",
    "known_names",
    "names",
    "parse_options",
    "write_json",
]

BATCH = 4
"""Windows per forward pass."""

_ROOT = Path(__file__).resolve().parent.parent
_SAMPLES, _SEED, _WINDOWS = 32, 233, 64


@dataclass(frozen=True)
class Options:
    """The common options, parsed."""

    model: Path
    data: Path
    calibration: tuple[str, ...]
    corpora: tuple[str, ...]
    window: int
    json: Path | None


@dataclass(frozen=True)
class Compressed:
    """What came of a recipe.

    Attributes:
        kept_ratio: parameters of the blocks' linear layers, after / before.
        layer_bytes: those layers as a store counts them: codes at their own width, float16
            scales, zero points at the codes' width, what is not quantized in the float type.
        total_bytes: the same with embedding, norms and head.
        perplexity: by corpus.
    """

    kept_ratio: float
    layer_bytes: int
    total_bytes: int
    perplexity: dict[str, float]


def parse_options(
    description: str,
    parser: argparse.ArgumentParser | None = None,
    *,
    calibration: tuple[str, ...] = ("wikitext2",),
) -> Any:
    """Parse the command line.

    Args:
        parser: with options of the script's own; they are attributes of the result too.
        calibration: corpora where the command line names none.
    """
    parser = parser or argparse.ArgumentParser()
    parser.description = description
    parser.add_argument("--model", type=Path, default=_ROOT / "tests/data/wren")
    parser.add_argument("--data", type=Path, required=True, help="folder of NAME.{train,test}.txt")
    parser.add_argument("--calibration", type=names, default=calibration)
    parser.add_argument(
        "--corpora", type=names, default=("wikitext2", "ptb", "tinystories", "pycode")
    )
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    return parser.parse_args()


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def known_names(text: str, allowed: Collection[str]) -> tuple[str, ...]:
    """Names with commas between them, each one of those allowed."""
    found = names(text)
    for name in found:
        if name not in allowed:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
    return found


class Bench:
    """A model with its calibration and evaluation tokens, read once, when they are needed."""

    def __init__(
        self,
        options: Options,
        *,
        float_type: FloatType = "float32",
        folder: Path | None = None,
    ) -> None:
        """
        Args:
            float_type: of unquantized matrices, so that rounding does not blur a method.
            folder: keeps generated text; None keeps it in memory alone.
        """
        self.options = options
        self.float_type: FloatType = float_type
        self.folder = folder
        self.source = SourceModel.open(str(options.model))
        self.skeleton: Skeleton = build_skeleton(self.source)
        self._calibration: dict[tuple[str, ...], Tensor] = {}

    @cached_property
    def texts(self) -> list[TokenWindows]:
        """Evaluation windows of the corpora that the options name."""
        return [self._text(name) for name in self.options.corpora]

    def calibration(self, corpora: Sequence[str] | None = None) -> Tensor:
        """Calibration windows of the corpora that the options (or the caller) name."""
        key = tuple(corpora or self.options.calibration)
        if key not in self._calibration:
            self._calibration[key] = calibration_windows(
                [(self._calibration_text(name), 1.0) for name in key],
                self.source.tokenizer,
                samples=_SAMPLES,
                window=self.options.window,
                seed=_SEED,
                bos="auto" if GENERATED in key else False,
            )
        return self._calibration[key]

    def recipe(self, sections: dict[str, Any]) -> Recipe:
        """A recipe for this model of `decompose`, `search`, `budget` and `quantize` sections.

        Its corpus is a stand-in: the calibration tokens are those of the options. What else the
        sections say of `calibration` holds.
        """
        calibration = {
            "corpora": ["python-docs"],
            "window": self.options.window,
            "batch_size": BATCH,
            **sections.get("calibration", {}),
        }
        fields = {"model": {"path": str(self.options.model)}}
        return Recipe.model_validate(fields | sections | {"calibration": calibration})

    def plan(self, sections: dict[str, Any] | Recipe) -> Plan:
        """The plan of a recipe with explicit ranks."""
        recipe = sections if isinstance(sections, Recipe) else self.recipe(sections)
        return make_plan(recipe, self.source, self.skeleton, self.float_type)

    def compress(
        self,
        recipe: dict[str, Any] | Recipe,
        folder: Path,
        calibration: Sequence[str] | Tensor | None = None,
    ) -> Store:
        """Carry out a recipe on the calibration tokens; the store lies in `folder`.

        Args:
            calibration: names of corpora, or the tokens themselves, int64 (windows, tokens).
        """
        parsed = recipe if isinstance(recipe, Recipe) else self.recipe(recipe)
        plan = self.plan(parsed)
        assert parsed.calibration is not None
        header = StoreHeader(
            key="benchmark", asvd_q=__version__, source=self.source.identity, plan=plan
        )
        store = Store.create(folder, header, self.source)
        if not isinstance(calibration, Tensor):
            calibration = self.calibration(calibration)
        compress(
            BlockwiseModel(self.source, skeleton=self.skeleton),
            store,
            section=parsed.decompose,
            quantization=parsed.quantize,
            correction=parsed.correct,
            calibration=Calibration(calibration, BATCH, parsed.calibration.sequential),
            seed=parsed.seed,
            progress=silent,
        )
        return Store.open(folder, self.source)

    def searched_ranks(
        self, recipe: dict[str, Any], folder: Path, calibration: Sequence[str] | None = None
    ) -> dict[str, int]:
        """The ranks that a recipe's `search` section finds on the calibration tokens.

        Args:
            recipe: its search does not measure what it chose, unless it says so.
            folder: keeps the sensitivities, so that another target repeats no work.
        """
        parsed = self.recipe(recipe | {"search": {"verify": False} | recipe["search"]})
        result = search_ranks(
            parsed,
            BlockwiseModel(self.source, skeleton=self.skeleton),
            self.calibration(calibration),
            self.float_type,
            folder,
            silent,
        )
        return result.ranks

    def budget(self, recipe: Recipe, folder: Path) -> BudgetResult:
        """What a recipe's `budget` comes to; what was tried is kept in `folder`."""
        return solve_budget(
            recipe,
            BlockwiseModel(self.source, skeleton=self.skeleton),
            self.calibration(),
            format_count(recipe, self.float_type, ()),
            folder,
            silent,
        )

    def perplexities(self, replaced: Replaced | None = None) -> dict[str, float]:
        """Perplexity per corpus, of the dense model or of a store's `replaced`."""
        runner = model_runner(self.source, replaced)
        return {
            text.corpus: evaluate_quality(runner, text, batch_size=BATCH).perplexity
            for text in self.texts
        }

    def compressed(
        self, recipe: dict[str, Any] | Recipe, calibration: Sequence[str] | None = None
    ) -> Compressed:
        """Carry out a recipe and evaluate what it leaves."""
        with tempfile.TemporaryDirectory() as folder:
            store = self.compress(recipe, Path(folder) / "store", calibration)
            layer_bytes = sum(record.bytes_after for record in store.records())
            return Compressed(
                kept_ratio=store.finished_plan.kept_ratio,
                layer_bytes=layer_bytes,
                total_bytes=layer_bytes + store.plan.other_bytes,
                perplexity=self.perplexities(store.replaced),
            )

    def _calibration_text(self, name: str) -> Corpus | GeneratedText:
        if name != GENERATED:
            return load_corpus(self._corpus(name, "train"))
        return GeneratedText(
            self.source,
            self.skeleton,
            seed=_SEED,
            device="cpu",
            dtype=torch.float32,
            folder=self.folder,
        )

    def _text(self, name: str) -> TokenWindows:
        corpus = load_corpus(self._corpus(name, "test"))
        tokens = evaluation_windows(
            corpus,
            self.source.tokenizer,
            window=self.options.window,
            windows=_WINDOWS,
            bos=False,
        )
        return TokenWindows(corpus=name, split="test", sha256=corpus.sha256, tokens=tokens)

    def _corpus(self, name: str, split: str) -> CorpusSection:
        path = self.options.data / f"{name}.{{split}}.txt"
        return CorpusSection(source=str(path), split=split)


def finish(options: Options, table: Table, content: Any) -> None:
    """Print the table and write the numbers."""
    print_table(Console(), table)
    if options.json is not None:
        write_json(options.json, content)


def write_json(path: Path, content: Any) -> None:
    """Replace a file by numbers, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")
