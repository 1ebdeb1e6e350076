"""The whole road on the bundled model: compress, export to ONNX, prove, measure, generate.

Claim: every artefact computes what was compressed, and low rank, codes and the two together take
fewer bytes in that order for the perplexities beside them.

    python -m benchmarks.demo [--json FILE]

Needs no network, no GPU, and nothing that is not in this repository.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from asvd_q.evaluation.generation import generate_text
from asvd_q.evaluation.latency import Timing, time_in_turns, times_as_fast
from asvd_q.opening import Opened, open_anything
from asvd_q.pipeline import run
from asvd_q.progress import silent
from asvd_q.recipe import load_recipe
from asvd_q.report.run import RunRecord
from asvd_q.report.tables import Table, print_table, size
from benchmarks.common import write_json

__all__ = ["CASES", "Case", "Row", "folder_of", "main", "make", "ranks_of"]

_ROOT = Path(__file__).resolve().parent.parent
_RUNS = _ROOT / "runs" / "demo"
_PROMPT, _TOKENS = "Once upon a time there was", 65
_COMMON = ("export=[{format: onnx}]", "evaluate.windows=24", "evaluate.dense=false")


@dataclass(frozen=True)
class Case:
    """One row of the table: a shipped recipe, and what is changed of it."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    factors: bool = True


CASES = (
    Case(
        "dense",
        "wren-asvd.yaml",
        ("search=null", "decompose=null", "calibration=null"),
        factors=False,
    ),
    Case("ASVD", "wren-asvd.yaml"),
    Case("ASVD + RTN 8", "wren-asvd-rtn8.yaml"),
    Case("GPTQ 4", "wren-gptq4.yaml", factors=False),
    Case("ASVD + GPTQ 4", "wren-asvd-gptq4.yaml"),
    Case("GPTQ 4, head 8", "wren-gptq4-whole.yaml", factors=False),
    # Embedding and head are among the choices. Fewer forms on offer than the recipe has: they are
    # tried in a minute.
    Case(
        "budget 4.4 MiB",
        "wren-budget-onnx.yaml",
        (
            "budget.bits_per_weight=null",
            "budget.size=4.4 MiB",
            "quantize.embedding={}",
            "quantize.head={}",
            "budget.ranks=4",
            "budget.group_sizes=[64, 128]",
            "budget.sample=2048",
            "correct=null",
        ),
        factors=False,
    ),
)


@dataclass(frozen=True)
class Row:
    """What came of a case.

    Attributes:
        bytes: of everything in the artefact's folder.
        layer_bytes: of the layers that the recipe may change, in the store's count.
        kept_ratio: of their parameters.
        perplexity: by corpus, by the store's own runner.
        logit_error: of the artefact in ONNX Runtime against the store, relative.
        decode_tokens_per_second: of one sequence.
        decode_ratio: that over the dense model's, the median of the rounds' own ratios.
    """

    name: str
    recipe: str
    bytes: int
    layer_bytes: int
    kept_ratio: float
    perplexity: dict[str, float]
    logit_error: float | None
    decode_tokens_per_second: float
    decode_ratio: float


def make(case: Case, ranks: Mapping[str, int]) -> tuple[RunRecord, Path]:
    """Carry a case out, in a folder of its own.

    Args:
        ranks: those that the first search found, so that recipes after it need not search; empty
            where none has.

    Returns:
        The record, and the run's folder; its artefact is `artefacts/onnx`.
    """
    folder = folder_of(case)
    overrides = [*_COMMON, f"output={folder}", *case.overrides]
    if case.factors and ranks:
        overrides += ["search=null", f"decompose.ranks={json.dumps(dict(ranks))}"]
    recipe = load_recipe(_ROOT / "recipes" / case.recipe, overrides)
    return run(recipe, silent, fresh=True), folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args()
    console = Console()
    started = time.perf_counter()
    records: dict[str, RunRecord] = {}
    opened: dict[str, Opened] = {}
    ranks: dict[str, int] = {}
    for case in CASES:
        console.print(f"{case.name}: recipes/{case.recipe} …", highlight=False)
        records[case.name], folder = make(case, ranks)
        opened[case.name] = open_anything(folder / "artefacts" / "onnx")
        ranks = ranks or ranks_of(records[case.name])
    tokenizer = opened["dense"].tokenizer
    prompt = torch.tensor([tokenizer(_PROMPT)["input_ids"]])
    runners = {name: model.runner for name, model in opened.items()}
    timings = time_in_turns(runners, prompt, tokens=_TOKENS)
    rows = [_row(case, records[case.name], timings[case.name], timings["dense"]) for case in CASES]
    print_table(console, _table(rows))
    console.print(_footnote(records), highlight=False)
    last = CASES[-1].name
    pieces = generate_text(opened[last].runner, tokenizer, _PROMPT, max_new_tokens=40)
    console.print(f"\nONNX Runtime, {last}: {''.join(pieces)}", highlight=False, markup=False)
    console.print(f"\n{time.perf_counter() - started:.0f} s; runs and artefacts: {_RUNS}")
    if options.json is not None:
        write_json(options.json, [asdict(row) for row in rows])


def folder_of(case: Case) -> Path:
    """Where a case is carried out."""
    return _RUNS / case.name.lower().replace(" + ", "-").replace(", ", "-").replace(" ", "")


def ranks_of(record: RunRecord) -> dict[str, int]:
    """The ranks of a run's factors."""
    return {layer.name: layer.rank for layer in record.layers if layer.rank is not None}


def _row(case: Case, record: RunRecord, timing: Timing, dense: Timing) -> Row:
    artefact = record.artefacts[0]
    return Row(
        name=case.name,
        recipe=case.recipe,
        bytes=artefact.bytes,
        layer_bytes=record.layer_bytes.after,
        kept_ratio=record.parameters.ratio,
        perplexity={quality.corpus: quality.perplexity for quality in record.quality},
        logit_error=artefact.proof.relative_error,
        decode_tokens_per_second=timing.decode_tokens_per_second,
        decode_ratio=times_as_fast(dense, timing, lambda turn: turn.rest).median,
    )


def _table(rows: list[Row]) -> Table:
    corpora = list(rows[0].perplexity)
    columns = (
        *("model", "ONNX folder", "layers", "kept"),
        *(f"{name} ppl" for name in corpora),
        *("logit difference", "decode"),
    )
    cells = (
        (
            row.name,
            size(row.bytes),
            size(row.layer_bytes),
            f"{row.kept_ratio:.3f}",
            *(f"{row.perplexity[name]:.2f}" for name in corpora),
            f"{row.logit_error:.1e}",
            f"{row.decode_ratio:.2f}× ({row.decode_tokens_per_second:.0f} tok/s)",
        )
        for row in rows
    )
    return Table("wren in ONNX Runtime, float32 activations", columns, tuple(cells))


def _footnote(records: dict[str, RunRecord]) -> str:
    quality = records["dense"].quality
    tokens = ", ".join(f"{part.corpus} {part.split}: {part.tokens} tokens" for part in quality)
    return (
        f"Perplexity in windows of {quality[0].window} tokens ({tokens}), by the store's own "
        "runner.\n"
        "ONNX folder: everything in it, of which embedding and tokenizer are 8.5 MiB where the "
        "embedding is in floating point.\n"
        "layers: those that the recipe may change, unquantized ones in the source's bfloat16, "
        "embedding and head in the last two. logit difference: artefact in ONNX Runtime "
        "against the store, relative, at the\n"
        "accuracy level that is shipped. decode: one sequence, batch 1, measured in turns."
    )


if __name__ == "__main__":
    main()
