"""The Pareto front of perplexity and bytes, and its picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks._compressions import CasePoint

__all__ = ["front", "plot_budget", "plot_front"]

_PLAIN, _FACTORS, _PEER = "#6b6b6b", "#2f6fb0", "#d1622b"


def front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Positions of the points that no other one beats.

    Args:
        points: bytes and perplexity, less of either being better.

    Returns:
        A point is left out where another has no more of both, and less of one. Equals stay.
    """
    best, found = math.inf, set[int]()
    order = sorted(range(len(points)), key=lambda index: points[index])
    for index in order:
        cost, value = points[index]
        if value < best or any(points[other] == (cost, value) for other in found):
            best = min(best, value)
            found.add(index)
    return found


def plot_front(points: Sequence[CasePoint], corpora: Sequence[str], path: Path) -> None:
    """One panel per corpus: perplexity by the bytes of the linear layers, the front as a line."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1, len(corpora), figsize=(5.2 * len(corpora), 4.6), squeeze=False, layout="constrained"
    )
    for axes, name in zip(panels[0], corpora, strict=True):
        # What has lost the language is of no interest, and would press the rest together.
        least = min(point.perplexity[name] for point in points)
        shown = [point for point in points if point.perplexity[name] < 2 * least]
        spots = [(point.layer_bytes / 2**20, point.perplexity[name]) for point in shown]
        for (x, y), point in zip(spots, shown, strict=True):
            axes.scatter(x, y, s=18, color=_colour(point), zorder=3)
        line = sorted(spots[index] for index in front(spots))
        axes.plot(*zip(*line, strict=True), color="black", linewidth=0.8, zorder=2)
        for index in front(spots):
            axes.annotate(
                shown[index].name,
                spots[index],
                fontsize=6,
                xytext=(3, 3),
                textcoords="offset points",
            )
        axes.set(xscale="log", yscale="log", title=name, xlabel="MiB of the linear layers")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}")
    panels[0][0].set_ylabel("perplexity")
    for colour, words in ((_PLAIN, "codes"), (_FACTORS, "factors"), (_PEER, "other packages")):
        panels[0][0].scatter([], [], s=18, color=colour, label=words)
    panels[0][0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def plot_budget(
    lines: Mapping[str, Sequence[tuple[float, Mapping[str, float]]]],
    beside: Sequence[CasePoint],
    corpora: Sequence[str],
    path: Path,
) -> None:
    """One panel per corpus: perplexity by bits per weight, a line per variant, others as points.

    Args:
        lines: variant → (bits per weight, perplexity by corpus).
        beside: compressions with one setting for all layers.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1, len(corpora), figsize=(5.2 * len(corpora), 4.6), squeeze=False, layout="constrained"
    )
    for axes, name in zip(panels[0], corpora, strict=True):
        shown = [(bits, values[name]) for line in lines.values() for bits, values in line]
        highest, widest = 1.3 * max(y for _, y in shown), 1.1 * max(x for x, _ in shown)
        for point in beside:
            spot = (point.bits_per_weight, point.perplexity[name])
            if spot[0] <= widest and spot[1] <= highest:
                axes.scatter(*spot, s=18, color=_colour(point), zorder=3)
                axes.annotate(
                    point.name, spot, fontsize=6, xytext=(3, 3), textcoords="offset points"
                )
        for variant, line in lines.items():
            spots = sorted((bits, values[name]) for bits, values in line)
            axes.plot(*zip(*spots, strict=True), linewidth=1.2, label=variant)
        axes.set(yscale="log", title=name, xlabel="bits per weight of the linear layers")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    panels[0][0].set_ylabel("perplexity")
    panels[0][0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _colour(point: CasePoint) -> str:
    if point.kept is not None:
        return _FACTORS
    return _PEER if ": " in point.name else _PLAIN
