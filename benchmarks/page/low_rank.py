"""What is said of low rank alone: the kept ratio, and which choice of ranks is worth what."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter

from benchmarks._setting import Point
from benchmarks.page.grid import CORPORA, cells, grid, percent, rise
from benchmarks.page.result import Results

__all__ = ["allocation_finding", "kept_table"]

_POINTS = TypeAdapter(list[Point])


def kept_table(results: Results) -> str:
    """Perplexity of the recipes' default by the share of the parameters that is kept."""
    dense, points = _default(results)
    rows = [("1", *cells(dense.perplexity, CORPORA))]
    rows += [(f"{point.kept_ratio:.3f}", *cells(point.perplexity, CORPORA)) for point in points]
    return grid(("kept", *CORPORA.values()), rows)


def allocation_finding(results: Results) -> str:
    """How much is lost at the first and the last target."""
    dense, points = _default(results)
    rises = [
        f"{percent(rise(point.perplexity, dense.perplexity))} at {point.kept_ratio:.3f}"
        for point in points
    ]
    return (
        "Perplexity over the dense model's, geometric mean over the corpora, by the share of the "
        f"linear layers' parameters that is kept: {', '.join(rises)}."
    )


def _default(results: Results) -> tuple[Point, Sequence[Point]]:
    """The dense model, and what the recipes do by default, the largest models first."""
    points = _POINTS.validate_python(results["allocation"].numbers)
    dense = next(point for point in points if point.method == "dense")
    chosen = [point for point in points if point.refit and point.calibration == ("generated",)]
    return dense, sorted(chosen, key=lambda point: -point.kept_ratio)
