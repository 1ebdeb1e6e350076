"""What is said of one setting of codes for all layers, with low rank and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import TypeAdapter

from benchmarks._compressions import CasePoint
from benchmarks._front import front
from benchmarks.factor_ablation import DEFAULT, change
from benchmarks.page.grid import CORPORA, bold, grid, percent, rise
from benchmarks.page.result import Results

__all__ = [
    "factor_choices_table",
    "factor_finding",
    "front_table",
    "frontier_finding",
    "points_of",
]

_POINTS = TypeAdapter(list[CasePoint])

_CHOICES: Mapping[str, str] = {
    "both": "√Σ in both factors, no rotation (the paper)",
    "u": "Σ in A, no rotation",
    "v": "Σ in B, no rotation",
    "A-as-it-was": "A not fitted again to B's codes",
    "A-hessian-of-B": "A quantized for the inputs of the exact B",
    "not-refitted": "no layer fitted to the dense outputs",
    "not-sequential": "the same, and statistics of the dense model",
    "minmax": "ranges of groups taken whole (`clip: minmax`)",
    "asymmetric": "asymmetric codes, which take more bytes",
}
"""Variants of `benchmarks.factor_ablation` that the table shows, in words."""

_PEERS = ("bitsandbytes: NF4", *(f"gptqmodel: GPTQ {bits}" for bits in (4, 3, 2)))
"""Other packages' codes that the table shows, on the front or not."""


def points_of(results: Results, name: str) -> list[CasePoint]:
    """The points of `benchmarks.frontier` or `benchmarks.factor_ablation`, largest first."""
    points = _POINTS.validate_python(results[name].numbers)
    return sorted(points, key=lambda point: (-point.layer_bytes, point.name))


def front_table(results: Results) -> str:
    """What is on the Pareto front of a corpus, and other packages' codes, by bits per weight."""
    points = points_of(results, "frontier")
    best = _fronts(points)
    rows = [
        (
            f"{point.bits_per_weight:.2f}",
            point.name,
            *(bold(f"{point.perplexity[name]:.2f}", index in best[name]) for name in CORPORA),
        )
        for index, point in enumerate(points)
        if point.name in _PEERS or any(index in best[name] for name in CORPORA)
    ]
    return grid(("bits per weight", "model", *CORPORA.values()), rows)


def frontier_finding(results: Results) -> str:
    """Which factors are on the front of all corpora, and what codes on them cost."""
    points = points_of(results, "frontier")
    best = _fronts(points)
    everywhere = set.intersection(*best.values())
    factors = [
        f"{point.name} ({point.bits_per_weight:.2f} bits)"
        for index, point in enumerate(points)
        if index in everywhere and point.kept is not None
    ]
    by_name = {point.name: point for point in points}
    plain = by_name.get("ASVD 0.8")
    costs = [
        f"{coding} {percent(rise(coded.perplexity, plain.perplexity))}"
        for coding in ("RTN 8", "NF4", "GPTQ 4", "GPTQ 3")
        if plain is not None and (coded := by_name.get(f"ASVD 0.8 + {coding}")) is not None
    ]
    return (
        f"With factors, on the front of every corpus: {', '.join(factors) or 'none'}. "
        f"What codes on the factors of kept 0.8 add to the perplexity: {', '.join(costs)}."
    )


def factor_choices_table(results: Results) -> str:
    """By how much the perplexity rises when one choice is another."""
    points = points_of(results, "factor_ablation")
    found = {(point.name, point.kept, point.bits): point for point in points}
    places = [(point.kept, point.bits) for point in points if point.name == DEFAULT]

    def cell(name: str, kept: float | None, bits: int | None) -> str:
        point = found.get((name, kept, bits))
        return "–" if point is None else percent(change(point, found[DEFAULT, kept, bits]))

    rows = [
        (words, *(cell(name, *place) for place in places))
        for name, words in _CHOICES.items()
        if any((name, *place) in found for place in places)
    ]
    heads = (f"kept {kept:g}, {bits} bits" for kept, bits in places)
    return grid(("instead of the default", *heads), rows)


def factor_finding(results: Results) -> str:
    """Where the choices matter, by width."""
    points = points_of(results, "factor_ablation")
    defaults = {(point.kept, point.bits): point for point in points if point.name == DEFAULT}
    largest: dict[int, float] = {}
    for point in points:
        default = defaults.get((point.kept, point.bits))
        if point.name in _CHOICES and point.bits is not None and default is not None:
            largest[point.bits] = max(largest.get(point.bits, 0.0), change(point, default))
    words = [f"{percent(share)} at {bits} bits" for bits, share in sorted(largest.items())[::-1]]
    return f"The worst of these choices costs {', '.join(words)}, at the kept ratio it hurts most."


def _fronts(points: Sequence[CasePoint]) -> dict[str, set[int]]:
    return {
        name: front([(point.layer_bytes, point.perplexity[name]) for point in points])
        for name in CORPORA
    }
