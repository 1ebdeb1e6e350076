"""A model chosen for ONNX Runtime beside plain 4-bit codes: size, quality, decode speed, memory.

Claim: for the bytes that ONNX Runtime really stores, the choice loses less than plain GPTQ codes,
and what it costs or gains at decoding is what this prints.

    python -m benchmarks.budget_onnx [--budgets 5,4,3] [--json FILE]

Recipes: wren-gptq4.yaml, and wren-budget-onnx.yaml at every budget (bits per weight of the linear
layers as ONNX Runtime stores them: 3-bit codes in 4, scales in float32). Every artefact is proven.
Decode speeds are of one sequence, measured in turns in this process; the peak of the resident set
is that of a process of its own which opens the artefact and generates 65 tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from asvd_q.evaluation.latency import Timing, time_in_turns, times_as_fast
from asvd_q.opening import open_anything
from asvd_q.pipeline import run
from asvd_q.progress import silent
from asvd_q.recipe import load_recipe
from asvd_q.report.run import RunRecord
from asvd_q.report.tables import Table, print_table, size
from asvd_q.speed import peak_memory
from benchmarks.common import names, write_json

__all__ = ["main"]

_RECIPES = Path(__file__).resolve().parent.parent / "recipes"
_PROMPT, _TOKENS = "Once upon a time there was", 65


def _row(
    name: str, record: RunRecord, peak: int, timing: Timing, reference: Timing
) -> dict[str, Any]:
    artefact = record.artefacts[0]
    ratio = times_as_fast(reference, timing, lambda turn: turn.rest)
    forms: dict[str, int] = {}
    for layer in record.layers:
        forms[layer.form] = forms.get(layer.form, 0) + 1
    return {
        "name": name,
        "bytes": artefact.weight_bytes,
        "peak_memory_bytes": peak,
        "perplexity": {quality.corpus: quality.perplexity for quality in record.quality},
        "logit_error": artefact.proof.relative_error,
        "decode_tokens_per_second": timing.decode_tokens_per_second,
        "ratio_to_gptq4": ratio.median,
        "forms": forms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.description = __doc__
    parser.add_argument(
        "--budgets", type=lambda text: tuple(map(float, names(text))), default=(5.0, 4.0, 3.0)
    )
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args()
    cases = {"GPTQ 4": ("wren-gptq4.yaml", ["export=[{format: onnx}]", "quantize.group_size=32"])}
    for bits in options.budgets:
        overrides = [f"budget.bits_per_weight={bits}"]
        cases[f"budget {bits:g}"] = ("wren-budget-onnx.yaml", overrides)
    with tempfile.TemporaryDirectory() as temporary:
        folders: dict[str, Path] = {}
        records: dict[str, RunRecord] = {}
        for number, (name, (recipe, overrides)) in enumerate(cases.items()):
            # Runs with a budget share one folder's trials; its artefact is renamed by its number.
            folder = Path(temporary) / recipe.removesuffix(".yaml")
            export = f"export=[{{format: onnx, name: onnx-{number}}}]"
            loaded = load_recipe(
                _RECIPES / recipe, [*overrides, export, f"output={folder}", "evaluate.dense=false"]
            )
            artefacts = Path(temporary) / f"kept-{number}"
            records[name] = run(loaded, silent, fresh=True)
            (folder / "artefacts").rename(artefacts)
            folders[name] = artefacts / f"onnx-{number}"
        opened = {name: open_anything(folder) for name, folder in folders.items()}
        prompt = torch.tensor([next(iter(opened.values())).tokenizer(_PROMPT)["input_ids"]])
        runners = {name: one.runner for name, one in opened.items()}
        timings = time_in_turns(runners, prompt, tokens=_TOKENS)
        rows = []
        for name, record in records.items():
            peak = peak_memory(folders[name], prompt, _TOKENS).bytes
            rows.append(_row(name, record, peak, timings[name], timings["GPTQ 4"]))
    corpora = list(rows[0]["perplexity"])
    table = Table(
        "wren chosen for ONNX Runtime",
        ("model", "ONNX file", "peak memory", *corpora, "logit error", "decode", "layers"),
        tuple(
            (
                row["name"],
                size(row["bytes"]),
                size(row["peak_memory_bytes"]),
                *(f"{row['perplexity'][name]:.3f}" for name in corpora),
                f"{row['logit_error']:.1e}",
                f"{row['ratio_to_gptq4']:.2f}×",
                json.dumps(row["forms"]),
            )
            for row in rows
        ),
    )
    print_table(Console(), table)
    if options.json is not None:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
