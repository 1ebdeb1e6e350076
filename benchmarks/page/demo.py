"""What is said of the demo."""

from __future__ import annotations

from typing import Any

from asvd_q.report.tables import size
from benchmarks.page.grid import cells, grid
from benchmarks.page.result import Results

__all__ = ["demo_finding", "demo_table"]


def demo_table(results: Results) -> str:
    """The table that `make demo` prints; speeds as ratios alone."""
    rows: list[dict[str, Any]] = results["demo"].numbers
    corpora = list(rows[0]["perplexity"])
    return grid(
        (
            *("model", "ONNX folder", "layers", "kept"),
            *(f"{name} perplexity" for name in corpora),
            *("logit difference", "decode"),
        ),
        (
            (
                row["name"],
                size(row["bytes"]),
                size(row["layer_bytes"]),
                f"{row['kept_ratio']:.3f}",
                *cells(row["perplexity"], corpora),
                f"{row['logit_error']:.1e}",
                f"{row['decode_ratio']:.2f}×",
            )
            for row in rows
        ),
    )


def demo_finding(results: Results) -> str:
    """The last row beside the first."""
    rows: list[dict[str, Any]] = results["demo"].numbers
    first, last = rows[0], rows[-1]
    changes = ", ".join(
        f"{last['perplexity'][name]:.2f} on {name} ({value:.2f} dense)"
        for name, value in first["perplexity"].items()
    )
    return (
        f"{last['name']}: an ONNX folder of {size(last['bytes'])} where the dense model has "
        f"{size(first['bytes'])}, with a perplexity of {changes}; it decodes "
        f"{last['decode_ratio']:.2f} times as fast."
    )
