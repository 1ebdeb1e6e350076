"""Plots of a study, as PNG and SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asvd_q.report.plots import figure_of, save_figure
from asvd_q.study.record import CorpusSummary, Row, Spread, StudyRecord
from asvd_q.study.schema import LinesPlot, MatrixPlot, Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_study"]

_AXIS: dict[Metric, str] = {
    "change": "perplexity against dense, %",
    "perplexity": "perplexity",
    "kl": "KL divergence from dense, nats per token",
    "agreement": "same arg max as dense, %",
}
_PERCENT = ("change", "agreement")
_WIDE = 8.0
"""Numbers along an axis that lie this many times apart are drawn on a logarithmic one."""
_TALL = 30.0
"""The same for what is measured."""


def plot_study(
    record: StudyRecord, plot: LinesPlot | MatrixPlot, folder: Path, name: str = "study"
) -> list[Path]:
    """Draw a study as it wants to be drawn.

    Args:
        folder: an existing folder.

    Returns:
        The files written: `name`.png and `name`.svg.
    """
    if isinstance(plot, MatrixPlot):
        return _matrix(record, plot, folder, name)
    return _lines(record, plot, folder, name)


def _lines(record: StudyRecord, plot: LinesPlot, folder: Path, name: str) -> list[Path]:
    panels = _panels(record, plot.panel)
    width = 4.2 if len(panels) > 1 else 6.4
    figure, axes = figure_of(len(record.corpora), len(panels), width=width, height=3.1)
    labels = _labels(record.rows, plot.x)
    numbers = _numbers(labels)
    for (line, corpus), (column, panel) in product(enumerate(record.corpora), enumerate(panels)):
        here, rows = axes[line][column], _rows(record.rows, panel)
        for index, series in enumerate(_labels(rows, plot.series)):
            chosen = [row for row in rows if plot.series is None or _has(row, plot.series, series)]
            _line(here, plot, labels, numbers, chosen, corpus, series, f"C{index % 10}")
        _scale(here, numbers, labels)
        if _spans(_values(rows, corpus, plot.metric)):
            here.set_yscale("log")
        here.set_title(", ".join(filter(None, (corpus, _panel_title(panel)))), fontsize=10)
        here.grid(alpha=0.25)
        here.spines[["top", "right"]].set_visible(False)
        if line == len(record.corpora) - 1:
            here.set_xlabel(plot.x)
        if column == 0:
            here.set_ylabel(_AXIS[plot.metric], fontsize=9)
    if plot.series is not None:
        handles, names = axes[0][0].get_legend_handles_labels()
        figure.legend(
            handles, names, title=plot.series, loc="outside right center", frameon=False, fontsize=9
        )
    figure.suptitle(record.name, fontsize=11)
    return save_figure(figure, folder, name)


def _line(
    axes: Axes,
    plot: LinesPlot,
    labels: Sequence[str],
    numbers: Sequence[float],
    rows: Sequence[Row],
    corpus: str,
    series: str,
    colour: str,
) -> None:
    """One series; with repetitions, the range between the least and the largest around it."""
    known = [
        (numbers[labels.index(row.settings[plot.x])], spread)
        for row in rows
        if (spread := _spread(row.corpus(corpus), plot.metric)) is not None
        and math.isfinite(spread.mean)
    ]
    known.sort(key=lambda pair: pair[0])
    xs = [x for x, _ in known]
    # A model that x makes no difference to is a level to compare with.
    level = len(rows) > 1 and len({row.keys for row in rows}) == 1
    style: dict[str, Any] = {"linestyle": "--"} if level else {"marker": "o", "markersize": 3.5}
    ys = [_shown(spread.mean, plot.metric) for _, spread in known]
    axes.plot(xs, ys, color=colour, linewidth=1.4, label=series, **style)
    if any(spread.count > 1 for _, spread in known):
        low = [_shown(spread.low, plot.metric) for _, spread in known]
        high = [_shown(spread.high, plot.metric) for _, spread in known]
        axes.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)


def _scale(axes: Axes, numbers: Sequence[float], labels: Sequence[str]) -> None:
    if _spans(numbers, _WIDE):
        axes.set_xscale("log", base=2)
    axes.set_xticks(list(numbers), labels=list(labels), fontsize=8)
    axes.minorticks_off()


def _matrix(record: StudyRecord, plot: MatrixPlot, folder: Path, name: str) -> list[Path]:
    panels, labels = _panels(record, plot.panel), _labels(record.rows, plot.rows)
    columns = math.ceil(math.sqrt(len(panels)))
    lines = math.ceil(len(panels) / columns)
    titles = [_panel_title(panel) for panel in panels]
    width = 0.8 + 0.95 * len(record.corpora) + 0.07 * max(map(len, labels))
    width = max(width, 0.8 + 0.065 * max(map(len, titles)), 3.6 / columns)
    figure, axes = figure_of(lines, columns, width=width, height=1.0 + 0.42 * len(labels))
    for place, here in enumerate(axis for line in axes for axis in line):
        if place >= len(panels):
            here.set_axis_off()
            continue
        rows = _rows(record.rows, panels[place])
        _cells(here, record.corpora, labels, rows, plot)
        here.set_title(titles[place], fontsize=8)
    figure.suptitle(
        f"{record.name}\n{_AXIS[plot.metric]}\nrows: {plot.rows}; columns: evaluated on\n"
        "framed: calibrated on that corpus alone\ndotted: on that among others",
        fontsize=9,
    )
    return save_figure(figure, folder, name)


def _cells(
    axes: Axes,
    corpora: Sequence[str],
    labels: Sequence[str],
    rows: Sequence[Row],
    plot: MatrixPlot,
) -> None:
    """Numbers, coloured column by column: within each, dark is where the corpus fares worst."""
    from matplotlib.patches import Rectangle

    values = [[math.nan] * len(corpora) for _ in labels]
    by_label = {row.settings[plot.rows]: row for row in rows}
    for (line, label), (column, corpus) in product(enumerate(labels), enumerate(corpora)):
        row = by_label.get(label)
        spread = None if row is None else _spread(row.corpus(corpus), plot.metric)
        if spread is not None:
            values[line][column] = _shown(spread.mean, plot.metric)
    shades = _by_column(values)
    axes.imshow(shades, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    for (line, label), (column, corpus) in product(enumerate(labels), enumerate(corpora)):
        value = values[line][column]
        text = "failed" if math.isnan(value) and label in by_label else _text(value, plot.metric)
        colour = "white" if shades[line][column] > 0.9 else "black"
        axes.text(column, line, text, ha="center", va="center", fontsize=8, color=colour)
        calibration = by_label[label].calibration if label in by_label else ()
        if corpus in calibration:
            style = "-" if len(calibration) == 1 else ":"
            axes.add_patch(
                Rectangle(
                    (column - 0.47, line - 0.46),
                    0.94,
                    0.92,
                    fill=False,
                    edgecolor="#d1622b",
                    linewidth=1.8,
                    linestyle=style,
                )
            )
    axes.set_xticks(range(len(corpora)), labels=list(corpora), fontsize=8)
    axes.set_yticks(range(len(labels)), labels=list(labels), fontsize=8)
    axes.tick_params(length=0)


def _by_column(values: Sequence[Sequence[float]]) -> list[list[float]]:
    """From 0 for the least to 1 for the largest of every column."""
    shades = [list(row) for row in values]
    for column in range(len(values[0])):
        found = [row[column] for row in values if math.isfinite(row[column])]
        low, high = (min(found), max(found)) if found else (0.0, 0.0)
        for row in shades:
            finite = math.isfinite(row[column])
            row[column] = (row[column] - low) / (high - low) if finite and high > low else 0.0
    return shades


def _text(value: float, metric: Metric) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:+.1f}" if metric == "change" else f"{value:.3g}"


def _panels(record: StudyRecord, keys: Sequence[str]) -> list[dict[str, str]]:
    """Every combination of the keys' values that there is, in the order of the rows."""
    found = [{key: row.settings[key] for key in keys} for row in record.rows]
    return [panel for index, panel in enumerate(found) if panel not in found[:index]]


def _panel_title(panel: dict[str, str]) -> str:
    return ", ".join(f"{key.rsplit('.', 1)[-1]} {label}" for key, label in panel.items())


def _rows(rows: Sequence[Row], panel: dict[str, str]) -> list[Row]:
    return [row for row in rows if all(_has(row, key, label) for key, label in panel.items())]


def _has(row: Row, key: str, label: str) -> bool:
    return row.settings[key] == label


def _labels(rows: Sequence[Row], key: str | None) -> list[str]:
    return [""] if key is None else list(dict.fromkeys(row.settings[key] for row in rows))


def _numbers(labels: Sequence[str]) -> list[float]:
    """Where the labels lie along an axis: at their own numbers, else side by side."""
    try:
        return [float(label) for label in labels]
    except ValueError:
        return [float(index) for index in range(len(labels))]


def _spans(values: Sequence[float], factor: float = _TALL) -> bool:
    return bool(values) and min(values) > 0 and max(values) >= factor * min(values)


def _values(rows: Sequence[Row], corpus: str, metric: Metric) -> list[float]:
    spreads = (_spread(row.corpus(corpus), metric) for row in rows)
    return [spread.mean for spread in spreads if spread is not None and math.isfinite(spread.mean)]


def _spread(summary: CorpusSummary | None, metric: Metric) -> Spread | None:
    found: Spread | None = None if summary is None else getattr(summary, metric)
    return found


def _shown(value: float, metric: Metric) -> float:
    return 100 * value if metric in _PERCENT else value
