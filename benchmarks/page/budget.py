"""What is said of the best model under a budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from pydantic import TypeAdapter

from benchmarks._agreement import spearman
from benchmarks._compressions import CasePoint
from benchmarks.budget import BudgetPoint, best_of
from benchmarks.page.codes import points_of
from benchmarks.page.grid import CORPORA, bold, cells, grid, percent, rise
from benchmarks.page.result import Results

__all__ = ["budget_finding", "budget_points", "budget_table", "parts_finding", "parts_table"]

BESIDE = "frontier"
"""The result that has everything else, with the same calibration."""

_POINTS = TypeAdapter(list[BudgetPoint])

_PARTS: Mapping[str, str] = {
    "mixed": "widths of codes alone, groups of 32, statistics of the dense model",
    "factors": "and factors",
    "corrections": "and corrections",
    "groups": "and groups of 64 and 128",
    "all": "and sequential statistics with refit: what the recipes do",
    "hybrid": "and `hybrid`",
    "codes": "the recipes without low rank",
}
"""Variants of `benchmarks.budget`, in words."""


def budget_points(results: Results, name: str = "budget") -> tuple[BudgetPoint, list[BudgetPoint]]:
    """The dense model, and everything under a budget, the largest budgets first."""
    points = _POINTS.validate_python(results[name].numbers)
    dense = next(point for point in points if point.target is None)
    chosen = [point for point in points if point.target is not None]
    return dense, sorted(chosen, key=lambda point: -(point.target or 0))


def budget_table(results: Results) -> str:
    """What the recipes reach at every budget, beside the best of everything else that fits."""
    dense, points = budget_points(results)
    beside = points_of(results, BESIDE)
    first = next(iter(CORPORA))
    rows = [("16 (dense)", *cells(dense.perplexity, CORPORA), "")]
    for point in points:
        if point.name == "all":
            numbers = [
                bold(f"{point.perplexity[name]:.2f}", _wins(point, beside, name))
                for name in CORPORA
            ]
            best = best_of(beside, point.layer_bytes, first)
            rows.append((f"{point.target:g}", *numbers, _words(best, first)))
    heads = ("bits per weight", *CORPORA.values(), f"best of the rest, {CORPORA[first]}")
    return grid(heads, rows)


def parts_table(results: Results) -> str:
    """What each part of the choice is worth, as the rise of the perplexity."""
    dense, points = budget_points(results, "budget-parts")
    found = {
        (point.name, point.target): rise(point.perplexity, dense.perplexity) for point in points
    }
    targets = sorted({point.target for point in points if point.target is not None})

    def cell(name: str, target: float) -> str:
        return percent(found[name, target]) if (name, target) in found else "–"

    rows = [(words, *(cell(name, one) for one in targets)) for name, words in _PARTS.items()]
    return grid(("", *(f"{target:g} bits" for target in targets)), rows)


def parts_finding(results: Results) -> str:
    """What low rank in any form is worth at each budget, and how well losses are predicted."""
    dense, points = budget_points(results, "budget-parts")
    found = {
        (point.name, point.target): rise(point.perplexity, dense.perplexity) for point in points
    }
    pairs = [
        f"{percent(found['all', target])} with low rank and {percent(share)} without at "
        f"{target:g} bits"
        for (name, target), share in sorted(found.items())
        if name == "codes" and ("all", target) in found
    ]
    return f"Rise of the perplexity: {', '.join(pairs)}. {_predicted(points, dense)}"


def budget_finding(results: Results) -> str:
    """How often the choice wins, and how well its losses are predicted."""
    dense, points = budget_points(results)
    beside = points_of(results, BESIDE)
    chosen = [point for point in points if point.name == "all"]
    first = next(iter(CORPORA))
    judged = [point for point in chosen if best_of(beside, point.layer_bytes, first) is not None]
    won = sum(all(_wins(point, beside, name) for name in CORPORA) for point in judged)
    return " ".join(
        (
            f"At {won} of {len(judged)} budgets the choice beats everything else measured "
            "of no more bytes on all corpora.",
            *_leads(chosen, beside, dense),
            _predicted(points, dense),
        )
    )


def _predicted(points: Sequence[BudgetPoint], dense: BudgetPoint) -> str:
    predicted = [point.predicted_loss for point in points]
    measured = [math.log1p(rise(point.perplexity, dense.perplexity)) for point in points]
    ratios = sorted(one / other for one, other in zip(measured, predicted, strict=True))
    return (
        f"Over {len(points)} allocations, predicted and measured rise of the loss have a rank "
        f"correlation of {spearman(predicted, measured):.3f}, and measured is {ratios[0]:.2f} to "
        f"{ratios[-1]:.2f} of predicted."
    )


def _leads(
    chosen: Sequence[BudgetPoint], beside: Sequence[CasePoint], dense: BudgetPoint
) -> Iterator[str]:
    """For plain 3- and 2-bit GPTQ: the smallest choice that is better on every corpus."""
    for bits in (3, 2):
        plain = next((one for one in beside if one.name == f"GPTQ {bits}"), None)
        if plain is None:
            continue
        better = [
            point
            for point in chosen
            if all(point.perplexity[name] < plain.perplexity[name] for name in CORPORA)
        ]
        if better:
            least = min(better, key=lambda point: point.linear_bits_per_weight)
            yield (
                f"A model of {least.target:g} bits per weight "
                f"({percent(rise(least.perplexity, dense.perplexity))} perplexity) is better than "
                f"plain GPTQ {bits} of {plain.bits_per_weight:.2f} "
                f"({percent(rise(plain.perplexity, dense.perplexity))})."
            )


def _wins(point: BudgetPoint, beside: Sequence[CasePoint], corpus: str) -> bool:
    best = best_of(beside, point.layer_bytes, corpus)
    return best is None or point.perplexity[corpus] < best.perplexity[corpus]


def _words(best: CasePoint | None, corpus: str) -> str:
    if best is None:
        return "–"
    return f"{best.perplexity[corpus]:.2f} ({best.name}, {best.bits_per_weight:.2f})"
