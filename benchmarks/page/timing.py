"""What is said of latency."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.page.grid import grid
from benchmarks.page.result import Results

__all__ = ["latency_finding", "latency_table"]

Row = dict[str, Any]

_DENSE = "dense"


def latency_table(results: Results) -> str:
    """Every model in every runtime, by batch and length of the prompt."""
    rows: list[Row] = results["latency"].numbers
    return grid(
        (
            *("runtime", "model", "batch × prompt", "first token", "times as fast"),
            *("decode, tokens per second", "times as fast", "all in all, times as fast"),
        ),
        (
            (
                row["runtime"],
                row["model"],
                f"{row['batch']} × {row['prompt']}",
                f"{1e3 * row['first_token_seconds']:.1f} ms",
                f"{row['first_token_ratio']:.2f}",
                f"{row['decode_tokens_per_second']:.0f}",
                f"{row['decode_ratio']:.2f}",
                f"{row['total_ratio']:.2f}",
            )
            for row in sorted(rows, key=lambda row: (row["runtime"], row["batch"], row["prompt"]))
        ),
    )


def latency_finding(results: Results) -> str:
    """How many times as fast each compressed model decodes, least and most, by runtime."""
    rows: list[Row] = results["latency"].numbers
    sentences = []
    for runtime in dict.fromkeys(row["runtime"] for row in rows):
        here = [row for row in rows if row["runtime"] == runtime and row["model"] != _DENSE]
        models = dict.fromkeys(row["model"] for row in here)
        words = [
            f"{model} {_spread(row['decode_ratio'] for row in here if row['model'] == model)}"
            for model in models
        ]
        sentences.append(f"{runtime}: {', '.join(words)}.")
    return f"In decoding, times as fast as dense in the same runtime. {' '.join(sentences)}"


def _spread(ratios: Iterable[float]) -> str:
    found = sorted(ratios)
    return f"{found[0]:.2f} to {found[-1]:.2f}"
