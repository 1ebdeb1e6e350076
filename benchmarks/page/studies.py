"""What is said of calibration texts, scalings and their powers, and how much text it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean, stdev
from typing import Any

from benchmarks.page.grid import CORPORA, bold, grid, percent, rise
from benchmarks.page.result import Results
from benchmarks.scaling import SAMPLED_RATIO

__all__ = [
    "alphas_table",
    "cross_domain_finding",
    "cross_domain_table",
    "samples_table",
    "scaling_finding",
]

Point = dict[str, Any]

_CALIBRATION, _SCALING = "calibration", "decompose.scaling"
_ALPHA, _SAMPLES = "decompose.alpha", "calibration.samples"
_RATIO, _CODES = "decompose.kept_ratio", "quantize"


def cross_domain_table(results: Results, name: str) -> str:
    """Rise of the perplexity on every corpus, by the text that a model was calibrated on.

    In bold is the least rise on a corpus among models that differ in the text alone.
    """
    points = _points(results, name, "cross_domain")
    corpora = _corpora(points)
    least: dict[tuple[str, ...], dict[str, float]] = {}
    for point in points:
        best = least.setdefault(_setup(point), {})
        for corpus, share in _rises(point).items():
            best[corpus] = min(share, best.get(corpus, share))
    setups = list(least)
    rows = [
        (
            *_setup(point),
            CORPORA.get(point["settings"][_CALIBRATION], point["settings"][_CALIBRATION]),
            *(
                bold(percent(share), share == least[_setup(point)][corpus])
                for corpus, share in _rises(point).items()
            ),
        )
        for point in sorted(points, key=lambda point: setups.index(_setup(point)))
    ]
    heads = ("scaling", "kept", "codes", "calibrated on")
    return grid((*heads, *(CORPORA.get(corpus, corpus) for corpus in corpora)), rows)


def cross_domain_finding(results: Results, name: str) -> str:
    """For each scaling, calibration on the text that is read beside calibration on another."""
    points = [
        point
        for point in _points(results, name, "cross_domain")
        if point["settings"][_CODES] == "none"
    ]
    lowest = min(float(point["settings"][_RATIO]) for point in points)
    sentences = []
    for scaling in dict.fromkeys(point["settings"][_SCALING] for point in points):
        here = {
            point["settings"][_CALIBRATION]: _rises(point)
            for point in points
            if point["settings"][_SCALING] == scaling and float(point["settings"][_RATIO]) == lowest
        }
        own = [here[corpus][corpus] for corpus in _corpora(points)]
        others = [
            share
            for text, rises in here.items()
            for corpus, share in rises.items()
            if text in rises and text != corpus
        ]
        words = [f"{percent(fmean(own))} on the corpus that it was calibrated on"]
        if others:
            words.append(f"{percent(fmean(others))} on another one")
        words += [
            f"{percent(fmean(here[text].values()))} calibrated on {words_of}"
            for text, words_of in (("all", "all of them"), ("generated", "text of its own"))
            if text in here
        ]
        sentences.append(f"{scaling} at kept {lowest:g}: {', '.join(words)}.")
    return f"Rise of the perplexity, mean over the corpora. {' '.join(sentences)}"


def alphas_table(results: Results, name: str) -> str:
    """Rise of the perplexity by scaling and power, geometric mean over the corpora."""
    points = _points(results, name, "grid")
    alphas = list(dict.fromkeys(point["settings"][_ALPHA] for point in points))
    found: dict[tuple[str, str], dict[str, float]] = {}
    for point in points:
        place = (_kept(point), point["settings"][_SCALING])
        found.setdefault(place, {})[point["settings"][_ALPHA]] = _mean_rise(point)
    rows = []
    for (kept, scaling), shares in found.items():
        # Whitening and the plain SVD have no power: one number stands for all.
        plain = len(set(shares.values())) == 1
        cells = [
            percent(shares[alpha]) if alpha in shares and not (plain and place) else "–"
            for place, alpha in enumerate(alphas)
        ]
        rows.append((kept, f"{scaling}, no α" if plain else scaling, *cells))
    return grid(("kept", "scaling", *(f"α {alpha}" for alpha in alphas)), rows)


def samples_table(results: Results, name: str) -> str:
    """Rise of the perplexity by the number of calibration windows, over the seeds."""
    found = _by_samples(results, name)
    return grid(
        ("calibration windows", "rise of the perplexity", "deviation over the seeds", "seeds"),
        (
            (
                count,
                percent(fmean(shares), 2),
                f"{100 * stdev(shares):.2f} %" if len(shares) > 1 else "–",
                str(len(shares)),
            )
            for count, shares in found.items()
        ),
    )


def scaling_finding(results: Results, name: str) -> str:
    """The best scaling at the smallest models, and what more text brings."""
    points = _points(results, name, "grid")
    lowest = min(float(_kept(point)) for point in points)
    here = [point for point in points if float(_kept(point)) == lowest]
    best: dict[str, tuple[float, str]] = {}
    for point in here:
        share, alpha = _mean_rise(point), point["settings"][_ALPHA]
        known = best.get(point["settings"][_SCALING])
        if known is None or share < known[0]:
            best[point["settings"][_SCALING]] = (share, alpha)
    ordered = sorted(best.items(), key=lambda item: item[1])
    words = [f"{scaling} {percent(share)}" for scaling, (share, _) in ordered]
    found = _by_samples(results, name)
    least, most = next(iter(found)), list(found)[-1]
    return (
        f"At kept {lowest:g}, each at its best power, the perplexity rises by {', '.join(words)}; "
        f"at kept {SAMPLED_RATIO:g}, by {percent(fmean(found[least]), 2)} with whitening on "
        f"{least} windows, and by {percent(fmean(found[most]), 2)} on {most}."
    )


def _points(results: Results, name: str, part: str) -> list[Point]:
    """The points of a study that did not fail."""
    points: list[Point] = results[name].numbers[part]["points"]
    return [point for point in points if point["result"] is not None]


def _by_samples(results: Results, name: str) -> Mapping[str, list[float]]:
    found: dict[str, list[float]] = {}
    for point in _points(results, name, "samples"):
        found.setdefault(point["settings"][_SAMPLES], []).append(_mean_rise(point))
    return found


def _setup(point: Point) -> tuple[str, ...]:
    """Everything but the calibration text."""
    settings = point["settings"]
    return settings[_SCALING], settings[_RATIO], settings[_CODES]


def _kept(point: Point) -> str:
    """Of a ratio for all layers, or of a search."""
    settings: dict[str, str] = point["settings"]
    return settings.get(_RATIO) or settings["search.kept_ratio"]


def _corpora(points: Iterable[Point]) -> list[str]:
    return list(dict.fromkeys(one["corpus"] for point in points for one in point["dense"]))


def _perplexities(qualities: Iterable[dict[str, Any]]) -> dict[str, float]:
    return {one["corpus"]: one["perplexity"] for one in qualities}


def _rises(point: Point) -> dict[str, float]:
    """By corpus."""
    dense = _perplexities(point["dense"])
    found = _perplexities(point["result"]["quality"])
    return {corpus: found[corpus] / value - 1 for corpus, value in dense.items()}


def _mean_rise(point: Point) -> float:
    return rise(_perplexities(point["result"]["quality"]), _perplexities(point["dense"]))
