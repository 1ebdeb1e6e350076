"""A recipe and its model, opened and looked at; nothing is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from asvd_q.artefact import Exporter
from asvd_q.budget.format import format_count
from asvd_q.errors import RecipeError, ResourceError
from asvd_q.evaluation.quality import TokenWindows
from asvd_q.evaluation.texts import evaluation_texts
from asvd_q.exporting import make_exports, require_expressible, require_model
from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.context import context_length, require_context
from asvd_q.models.skeleton import Skeleton, build_skeleton
from asvd_q.plan import FloatType, LayerPlan, Plan
from asvd_q.progress import Progress, silent
from asvd_q.quantization import TORCH_TYPES, float_type_of
from asvd_q.recipe import DecomposeSection, ExportSection, Recipe
from asvd_q.report.run import CorpusRecord
from asvd_q.search import make_plan
from asvd_q.sizes import predict_files
from asvd_q.statistics.corpora import Corpus
from asvd_q.statistics.generated import GeneratedText
from asvd_q.statistics.reading import CorpusReader
from asvd_q.statistics.windows import calibration_windows

__all__ = [
    "Prepared",
    "Tokens",
    "prepare",
    "read_tokens",
    "require_exports",
    "require_models",
]

_GENERATED = "calibration"
"""Folder of generated text inside a run folder."""


@dataclass(frozen=True)
class Prepared:
    """A recipe and its model, looked at and not touched.

    Attributes:
        pinned: layers about which nothing is left to decide, and what they become.
        kept_ranks: of the layers that the source has as factors, where these are kept as they are.
    """

    recipe: Recipe
    source: SourceModel
    skeleton: Skeleton
    float_type: FloatType
    exports: tuple[tuple[ExportSection, Exporter], ...]
    device: str
    pinned: Mapping[str, LayerPlan] = field(default_factory=dict)
    kept_ranks: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def plan(self) -> Plan:
        """What becomes of every layer.

        Raises:
            RecipeError: the forms of its layers are still to be searched for.
        """
        if self.recipe.searches:
            raise RecipeError("the forms of this recipe's layers are still to be searched for")
        plan = make_plan(self.recipe, self.source, self.skeleton, self.float_type)
        if self.kept_ranks:
            plan = plan.with_layers({layer.name: self._as_stored(layer) for layer in plan})
        return plan.with_layers(self.pinned)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What there is to know of the source before anything is made of it."""
        return tuple(_source_warnings(self))

    def _as_stored(self, layer: LayerPlan) -> LayerPlan:
        """The layer with its reason in terms of the checkpoint, not of ranks that nobody gave."""
        rank = self.kept_ranks.get(layer.name)
        reason = None if rank is None else f"already factorised at rank {rank} by its checkpoint"
        return layer.model_copy(update={"reason": reason})

    def model(self) -> BlockwiseModel:
        """The dense model, to be run block by block."""
        return BlockwiseModel(
            self.source,
            device=self.device,
            dtype=TORCH_TYPES[self.recipe.compute_dtype],
            skeleton=self.skeleton,
        )


def prepare(recipe: Recipe, source: SourceModel | None = None) -> Prepared:
    """Open the model and build the exporters. Reads no weights.

    Args:
        source: the recipe's model, where it is open already.

    Raises:
        AsvdQError: whatever is wrong with the recipe or the model.
    """
    source = source or SourceModel.open(
        recipe.model.path,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    _require_context(recipe, source)
    skeleton = build_skeleton(source)
    dtype: FloatType = (
        float_type_of(source.dtype) if recipe.model.dtype == "auto" else recipe.model.dtype
    )
    exports = make_exports(recipe, "the recipe")
    if recipe.budget is not None:
        format_count(recipe, dtype, exports)
    kept = {} if recipe.searches else _stored_ranks(source, skeleton)
    if kept:
        same = _as_factors(kept, skeleton)
        if recipe.decompose in (None, same):  # the second is the recipe that a run writes down
            recipe = recipe.model_copy(update={"decompose": same})
        else:
            kept = {}
    return Prepared(
        recipe=recipe,
        source=source,
        skeleton=skeleton,
        float_type=dtype,
        exports=exports,
        device=_device(recipe),
        kept_ranks=kept,
    )


def _stored_ranks(source: SourceModel, skeleton: Skeleton) -> dict[str, int]:
    """Rank of every layer that the source has as factors."""
    found = {weight.name: source.rank(weight.name) for weight in skeleton.weights}
    return {name: rank for name, rank in found.items() if rank is not None}


def _as_factors(ranks: Mapping[str, int], skeleton: Skeleton) -> DecomposeSection:
    """The section that gives layers back as factors of the ranks that their products have.

    Nothing is cut off, so nothing needs weighing.
    """
    return DecomposeSection(scaling="none", ranks=dict(ranks), lm_head=skeleton.head in ranks)


def _source_warnings(prepared: Prepared) -> Iterator[str]:
    source, codes = prepared.source, prepared.source.codes
    if codes is not None:
        widths = " and ".join(str(bits) for bits in codes.bits)
        twice = "" if prepared.recipe.quantize is None else ", and codes of codes lose twice"
        yield (
            f"{codes.layers} matrices of {source.name} are {codes.method} codes of {widths} bits: "
            f"what is made of them starts from rounded weights{twice}; start from the unquantized "
            "model if there is one"
        )
    if prepared.skeleton.untouched:
        kinds, share = prepared.skeleton.untouched_kinds()
        yield (
            f"left as they are, being no linear layers: {', '.join(kinds)}, {share:.1%} of the "
            "weights of the blocks"
        )
    stored = {} if prepared.kept_ranks else _stored_ranks(source, prepared.skeleton)
    if stored:
        ranks = " to ".join(map(str, sorted({min(stored.values()), max(stored.values())})))
        yield (
            f"{len(stored)} layers of {source.name} are stored as factors of rank {ranks}: the "
            "recipe chooses forms itself, so it starts from their products, and a layer that it "
            "leaves out becomes dense"
        )


@dataclass(frozen=True)
class Tokens:
    """All text that a run reads.

    Attributes:
        calibration: int64 (samples, tokens); None when the recipe needs none.
        texts: the windows of the evaluation.
        corpora: what was read, with the hash of each text.
    """

    calibration: Tensor | None
    texts: tuple[TokenWindows, ...]
    corpora: tuple[CorpusRecord, ...]


def read_tokens(
    prepared: Prepared,
    folder: Path | None = None,
    progress: Progress = silent,
    *,
    known_only: bool = False,
    reader: CorpusReader | None = None,
) -> Tokens:
    """Read and cut the text of calibration and evaluation; sample what is to be generated.

    Args:
        folder: the run's, which keeps generated text; None keeps none.
        progress: called while text is generated.
        known_only: generate nothing.
        reader: knows what it has read before; None reads everything anew.

    Raises:
        CorpusError: a corpus that is missing, empty or too short; `known_only`, and text that
            was never generated.
        ResourceError: a model too large to generate text with.
    """
    recipe, source = prepared.recipe, prepared.source
    reader = reader or CorpusReader()
    calibration: Tensor | None = None
    records: list[CorpusRecord] = []
    if recipe.calibration is not None:
        section = recipe.calibration
        generated = GeneratedText(
            source,
            prepared.skeleton,
            seed=section.seed,
            device=prepared.device,
            dtype=TORCH_TYPES[recipe.compute_dtype],
            folder=None if folder is None else folder / _GENERATED,
            known_only=known_only,
            progress=progress,
        )
        corpora: list[tuple[Corpus | GeneratedText, float]] = [
            (generated if corpus.is_generated else reader.load(corpus), corpus.weight)
            for corpus in section.corpora
        ]
        calibration = calibration_windows(
            corpora,
            source.tokenizer,
            samples=section.samples,
            window=section.window,
            seed=section.seed,
            bos=section.bos,
            encode=reader.encode,
        )
        records = [_calibration_record(text, calibration) for text, _ in corpora]
    texts = []
    if recipe.evaluate is not None:
        context = context_length(source.config.to_dict())
        texts = evaluation_texts(recipe.evaluate, source.tokenizer, context, reader)
    records += [
        CorpusRecord(corpus=text.corpus, split=text.split, use="evaluation", sha256=text.sha256)
        for text in texts
    ]
    return Tokens(calibration, tuple(texts), tuple(records))


def _require_context(recipe: Recipe, source: SourceModel) -> None:
    context = context_length(source.config.to_dict())
    if recipe.calibration is not None:
        require_context("calibration.window", recipe.calibration.window, context)
    if recipe.evaluate is not None and isinstance(recipe.evaluate.window, int):
        require_context("evaluate.window", recipe.evaluate.window, context)


def _calibration_record(text: Corpus | GeneratedText, windows: Tensor) -> CorpusRecord:
    """Generated text is known by the tokens of all windows, having no text of its own."""
    digest = (
        text.sha256
        if isinstance(text, Corpus)
        else hashlib.sha256(windows.numpy().tobytes()).hexdigest()
    )
    return CorpusRecord(corpus=text.name, split=text.split, use="calibration", sha256=digest)


def require_models(prepared: Prepared) -> None:
    """Raises ExportError when one of the recipe's exports cannot hold the model at all."""
    for _, exporter in prepared.exports:
        require_model(exporter, prepared.source)


def require_exports(prepared: Prepared) -> None:
    """Raises ExportError when one of the recipe's exports cannot hold the plan.

    Or not with this model: what a format has against the two together shows when it says its files.
    """
    for _, exporter in prepared.exports:
        require_expressible(exporter, prepared.plan)
        predict_files(exporter, prepared.plan, prepared.source)


def _device(recipe: Recipe) -> str:
    available = torch.cuda.is_available()
    if recipe.device == "cuda" and not available:
        raise ResourceError("device: cuda is asked for and torch finds no GPU; use auto or cpu")
    if recipe.device == "auto":
        return "cuda" if available else "cpu"
    return recipe.device
