"""The picture for README's first screen: perplexity by bits per weight, the choice and the rest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asvd_q.files import atomic_path
from benchmarks._compressions import CasePoint
from benchmarks.page.budget import BESIDE, budget_points
from benchmarks.page.codes import points_of
from benchmarks.page.grid import rise
from benchmarks.page.result import Results

__all__ = ["PICTURE", "Series", "draw", "fingerprint", "series_of"]

PICTURE = Path(__file__).resolve().parent.parent.parent / "docs" / "images" / "frontier.svg"

_WORST, _WIDEST = 25.0, 6.0
"""Rise of the perplexity in percent, and bits per weight, beyond which nothing is shown."""

_INK = "#768390"
"""Of the text; of the same contrast on GitHub's white and on its dark grey."""


_SETTINGS: Mapping[str, Any] = {
    "svg.fonttype": "none",  # the reader's own font
    "svg.hashsalt": "asvd-q",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@dataclass(frozen=True)
class Series:
    """Points of one kind: bits per weight, and the rise of the perplexity in percent."""

    name: str
    points: tuple[tuple[float, float], ...]


_STYLES: Mapping[str, dict[str, Any]] = {
    "asvd-q, chosen per layer under a budget": {"color": "#2f81f7", "marker": "o", "linewidth": 2},
    "ASVD at one ratio, with codes": {"color": "#8957e5", "marker": "^"},
    "GPTQ": {"color": "#57ab5a", "marker": "s"},
    "gptqmodel": {"color": "#e0823d", "marker": "D"},
    "gptqmodel + EoRA": {"color": "#c69026", "marker": "v"},
    "RTN": {"color": "#e5534b", "marker": "x"},
    "NF4, bitsandbytes": {"color": "#db61a2", "marker": "P"},
}
_CHOICE = next(iter(_STYLES))


def series_of(results: Results) -> list[Series]:
    """What is drawn, the choice first."""
    dense, points = budget_points(results)
    chosen = [
        (point.linear_bits_per_weight, 100 * rise(point.perplexity, dense.perplexity))
        for point in points
        if point.name == "all"
    ]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in _STYLES}
    found[_CHOICE] = chosen
    for point in points_of(results, BESIDE):
        kind = _kind(point)
        if kind is not None:
            spot = (point.bits_per_weight, 100 * rise(point.perplexity, dense.perplexity))
            found[kind].append(spot)
    shown = {
        name: sorted((x, y) for x, y in spots if x <= _WIDEST and 0 < y <= _WORST)
        for name, spots in found.items()
    }
    return [Series(name, tuple(spots)) for name, spots in shown.items() if spots]


def fingerprint(series: Sequence[Series]) -> str:
    """Hash of what is drawn, which the file's metadata hold."""
    rounded = [[one.name, [[round(x, 4), round(y, 4)] for x, y in one.points]] for one in series]
    return hashlib.sha256(json.dumps(rounded).encode()).hexdigest()


def draw(series: Sequence[Series], path: Path = PICTURE) -> None:
    """Write an SVG without a background, readable on a light page and on a dark one."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    with rc_context(_SETTINGS):
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        axes = figure.subplots()
        for one in series:
            style = {"markersize": 6, "linewidth": 0, **_STYLES[one.name]}
            axes.plot(*zip(*one.points, strict=True), label=one.name, **style)
        axes.set(
            yscale="log",
            xlabel="bits per weight of the linear layers, scales included",
            ylabel="rise of the perplexity, %",
        )
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3, color=_INK, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None, "Description": fingerprint(series)}
        with atomic_path(path) as partial:
            figure.savefig(partial, format="svg", transparent=True, metadata=metadata)


def _kind(point: CasePoint) -> str | None:
    """Which series a point belongs to; None is not shown."""
    peer, _, _ = point.name.partition(": ")
    if peer in ("gptqmodel", "gptqmodel + EoRA"):
        return peer
    if peer == "bitsandbytes" or point.name == "NF4":
        return "NF4, bitsandbytes"
    if point.kept is not None:
        return "ASVD at one ratio, with codes" if point.method is not None else None
    return None if point.method is None else point.method.upper()
