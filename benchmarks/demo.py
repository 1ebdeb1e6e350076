"""The whole road on the bundled model: compress, export to ONNX, prove, measure, generate.

Needs no network, no GPU, and nothing that is not in this repository.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
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


def main() -> None:
    console = Console()
    started = time.perf_counter()
    records: dict[str, RunRecord] = {}
    opened: dict[str, Opened] = {}
    for case in CASES:
        console.print(f"{case.name}: recipes/{case.recipe} …", highlight=False)
        folder = _RUNS / case.name.lower().replace(" + ", "-").replace(", ", "-").replace(" ", "")
        overrides = [*_COMMON, f"output={folder}", *case.overrides]
        if case.factors:
            overrides += _known_ranks(records)
        recipe = load_recipe(_ROOT / "recipes" / case.recipe, overrides)
        records[case.name] = run(recipe, silent, fresh=True)
        opened[case.name] = open_anything(folder / "artefacts" / "onnx")
    tokenizer = opened["dense"].tokenizer
    prompt = torch.tensor([tokenizer(_PROMPT)["input_ids"]])
    runners = {name: model.runner for name, model in opened.items()}
    print_table(console, _table(records, time_in_turns(runners, prompt, tokens=_TOKENS)))
    console.print(_footnote(records), highlight=False)
    last = CASES[-1].name
    pieces = generate_text(opened[last].runner, tokenizer, _PROMPT, max_new_tokens=40)
    console.print(f"\nONNX Runtime, {last}: {''.join(pieces)}", highlight=False, markup=False)
    console.print(f"\n{time.perf_counter() - started:.0f} s; runs and artefacts: {_RUNS}")


def _known_ranks(records: dict[str, RunRecord]) -> list[str]:
    """The ranks that the first search found, so that the recipes after it need not search."""
    if "ASVD" not in records:
        return []
    ranks = {layer.name: layer.rank for layer in records["ASVD"].layers if layer.rank is not None}
    return ["search=null", f"decompose.ranks={json.dumps(ranks)}"]


def _table(records: dict[str, RunRecord], timings: dict[str, Timing]) -> Table:
    corpora = [f"{quality.corpus} ppl" for quality in records["dense"].quality]
    columns = ("model", "ONNX file", "layers", "kept", *corpora, "logit difference", "decode")
    rows = []
    for name, record in records.items():
        artefact, timing = record.artefacts[0], timings[name]
        ratio = times_as_fast(timings["dense"], timing, lambda turn: turn.rest)
        rows.append(
            (
                name,
                size(artefact.bytes),
                size(record.layer_bytes.after),
                f"{record.parameters.ratio:.3f}",
                *(f"{quality.perplexity:.2f}" for quality in record.quality),
                f"{artefact.proof.relative_error:.1e}",
                f"{ratio.median:.2f}× ({timing.decode_tokens_per_second:.0f} tok/s)",
            )
        )
    return Table("wren in ONNX Runtime, float32 activations", columns, tuple(rows))


def _footnote(records: dict[str, RunRecord]) -> str:
    quality = records["dense"].quality
    tokens = ", ".join(f"{part.corpus} {part.split}: {part.tokens} tokens" for part in quality)
    return (
        f"Perplexity in windows of {quality[0].window} tokens ({tokens}), by the store's own "
        "runner.\n"
        "ONNX file: everything in the artefact folder, of which embedding and tokenizer are "
        "8.5 MiB where it is in floating point.\n"
        "layers: those that the recipe may change, unquantized ones in the source's bfloat16, "
        "embedding and head in the last two. logit difference: artefact in ONNX Runtime "
        "against the store, relative, at the\n"
        "accuracy level that is shipped. decode: one sequence, batch 1, measured in turns."
    )


if __name__ == "__main__":
    main()
