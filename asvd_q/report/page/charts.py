"""The report's charts: bytes by part, singular values by kind of layer, numbers by block and kind.

Every chart has a name for readers who cannot see it, and the page has its numbers as a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from asvd_q.records import LayerRecord, LayerSpectrum
from asvd_q.report.page.maps import HeatMap
from asvd_q.report.page.sizes import CONTENTS, PartSize
from asvd_q.report.page.svg import Point, coordinate, drawing, element, label, path, thinned
from asvd_q.report.page.words import from_to
from asvd_q.report.tables import size

__all__ = ["SHADES", "Panel", "heat_chart", "panels", "shade", "size_chart", "spectrum_chart"]

SHADES = 9
"""Steps of the shades in heat maps, and of the lines from the first block to the last."""

_TOLERANCE = 0.35
"""Of a line, in the chart's own pixels."""

_FLOOR = 1e-6
"""Singular values below it, relative to the largest, lie on the axis."""

_MAP_WIDTH = 470.0
"""Of a heat map's cells, as long as they can be told apart."""

_ROOM_FOR_NUMBERS = 16
"""Blocks up to which a heat map has numbers in its cells."""


def size_chart(parts: Sequence[PartSize]) -> Markup:
    """Two bars for every part: what it took, and what it takes now, by what is stored.

    Positions are shares of the width, so that the text keeps its size on a narrow screen.
    """
    largest = max([1, *(max(part.before, part.total) for part in parts)])
    step = 62.0
    children = [
        child
        for index, part in enumerate(parts)
        for child in _size_rows(part, 100 / largest, index * step)
    ]
    words = "; ".join(f"{part.name} {size(part.before)} to {size(part.total)}" for part in parts)
    return element(
        "svg",
        *children,
        role="img",
        aria_label=f"Bytes before and after: {words}",
        class_="bars",
        width="100%",
        height=step * len(parts) - 8,
    )


def _size_rows(part: PartSize, scale: float, top: float) -> Iterator[Markup]:
    yield label(part.name, 0, top + 12, class_="strong")
    yield label(from_to(part.before, part.total), "100%", top + 12, anchor="end", class_="num")
    yield _bar(0, part.before * scale, top + 19, 8, "was", f"before: {size(part.before)}")
    left = 0.0
    for content, count in part.after.items():
        width = count * scale
        words = f"{CONTENTS[content]}: {size(count)}"
        yield _bar(left, width, top + 29, 16, f"c-{content.replace(' ', '-')}", words)
        left += width


def _bar(left: float, width: float, top: float, height: float, class_: str, words: str) -> Markup:
    return element(
        "rect",
        element("title", words),
        x=f"{left:.3f}%",
        y=top,
        width=f"{width:.3f}%",
        height=height,
        class_=class_,
    )


@dataclass(frozen=True)
class Panel:
    """Layers of one kind whose spectra are known: (name, block, spectrum), in model order."""

    kind: str
    layers: tuple[tuple[str, int | None, LayerSpectrum], ...]


def panels(
    layers: Sequence[LayerRecord], spectra: Mapping[str, LayerSpectrum]
) -> tuple[Panel, ...]:
    """One panel for every kind of layer, in the order of the model."""
    found: dict[str, list[tuple[str, int | None, LayerSpectrum]]] = {}
    for layer in layers:
        lines = found.setdefault(layer.kind, [])
        if layer.name in spectra:
            lines.append((layer.name, layer.block, spectra[layer.name]))
    return tuple(Panel(kind, tuple(lines)) for kind, lines in found.items() if lines)


def spectrum_chart(panel: Panel, blocks: int, decades: int) -> Markup:
    """Singular values by rank, a line for every block: strong up to its rank, faint after it.

    Args:
        blocks: of the model; the shade of a line says where in it the layer is.
        decades: powers of ten on the vertical axis, the same for all panels.
    """
    width, height = 300.0, 196.0
    frame = _Frame(left=46, top=26, right=width - 8, bottom=height - 34)
    last = max(spectrum.count for _, _, spectrum in panel.layers)
    ranks = [spectrum.rank for _, _, spectrum in panel.layers]
    span = str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)} to {max(ranks)}"

    def at(rank: float, value: float) -> Point:
        down = -math.log10(max(value, _FLOOR)) / decades
        return frame.at((rank - 1) / max(last - 1, 1), min(down, 1.0))

    children = [label(panel.kind, 0, 13, class_="strong")]
    children.append(label(f"rank {span} of {last}", width - 8, 13, anchor="end", class_="num soft"))
    children += frame.grid(
        [((rank - 1) / max(last - 1, 1), str(rank)) for rank in _ticks(last)],
        [(power / decades, _power(power)) for power in range(decades + 1)],
    )
    middle = (frame.left + frame.right) / 2
    children.append(label("rank", middle, height - 4, anchor="middle", class_="soft"))
    children.append(_upright("σ relative to the largest", 9, (frame.top + frame.bottom) / 2))
    for name, block, spectrum in panel.layers:
        points = [at(*pair) for pair in zip(spectrum.ranks, spectrum.values, strict=True)]
        cut = sum(rank <= spectrum.rank for rank in spectrum.ranks)
        words = (
            f"{name}: rank {spectrum.rank} of {spectrum.count}, keeps {spectrum.kept:.2%} of Σ σ²"
        )
        kept, lost = points[:cut], points[max(cut - 1, 0) :]
        shapes = [element("title", words)]
        if kept:
            shapes.append(element("path", d=path(thinned(kept, _TOLERANCE))))
        if len(lost) > 1:
            shapes.append(element("path", d=path(thinned(lost, _TOLERANCE)), class_="cut"))
        if kept:
            shapes.append(element("circle", cx=kept[-1][0], cy=kept[-1][1], r=2.6))
        depth = 1.0 if block is None else block / max(blocks - 1, 1)
        children.append(element("g", *shapes, class_=f"line d{shade(depth)}"))
    words = f"Singular values of {panel.kind} in {len(panel.layers)} layers, cut at rank {span}"
    return drawing(children, name=words, width=width, height=height, fluid=True)


def heat_chart(heat: HeatMap) -> Markup:
    """Kinds in rows, blocks in columns; a darker shade is a larger number."""
    numbers = len(heat.blocks) <= _ROOM_FOR_NUMBERS
    row = 22.0
    cell = 42.0 if numbers else min(max(_MAP_WIDTH / len(heat.blocks), 9.0), 17.0)
    left = 12 + 7.0 * max(len(kind) for kind in heat.kinds)
    low, high = min(heat.values.values()), max(heat.values.values())
    width = left + cell * len(heat.blocks) + 2
    bottom = row * len(heat.kinds)
    children: list[Markup] = []
    for index, kind in enumerate(heat.kinds):
        children.append(label(kind, left - 8, index * row + 15, anchor="end"))
        for position, block in enumerate(heat.blocks):
            value = heat.values.get((kind, block))
            x, y = left + position * cell, index * row
            words = "none" if value is None else f"{value:{heat.form}}"
            step = None if value is None else shade(_place(value, low, high, heat.logarithmic))
            tip = element("title", f"block {block}, {kind}: {words}")
            children.append(
                element(
                    "rect",
                    tip,
                    x=x,
                    y=y,
                    width=cell - 2,
                    height=row - 2,
                    class_="none" if step is None else f"h{step}",
                )
            )
            if numbers and step is not None:
                children.append(
                    label(words, x + cell / 2 - 1, y + 14, anchor="middle", class_=f"t{step}")
                )
    every = max(1, math.ceil(26 / cell))
    for position, block in enumerate(heat.blocks):
        if position % every == 0:
            x = left + (position + 0.5) * cell - 1
            children.append(label(str(block), x, bottom + 13, anchor="middle", class_="soft"))
    children.append(label("block", left - 8, bottom + 13, anchor="end", class_="soft"))
    words = (
        f"{heat.title}, by block and kind of layer: from {low:{heat.form}} to {high:{heat.form}}"
    )
    return drawing(children, name=words, width=width, height=bottom + 18)


def shade(place: float) -> int:
    """The step of a place between 0 and 1."""
    return min(int(place * SHADES), SHADES - 1)


def _place(value: float, low: float, high: float, logarithmic: bool) -> float:
    if logarithmic:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low) if high > low else 1.0


def _upright(words: str, x: float, y: float) -> Markup:
    """Text that reads from below, with its middle at y."""
    turn = f"rotate(-90 {coordinate(x)} {coordinate(y)})"
    return element("text", words, x=x, y=y, transform=turn, text_anchor="middle", class_="soft")


def _power(power: int) -> str:
    """10 to minus this."""
    digits = str(power).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10⁻{digits}" if power else "1"


def _ticks(last: int) -> list[int]:
    """The first rank, and round numbers up to the last."""
    raw = max(last / 4, 1.0)
    power = 10.0 ** math.floor(math.log10(raw))
    steps = (factor * power for factor in (1, 2, 2.5, 5, 10))
    step = int(next(step for step in steps if step >= raw and step % 1 == 0))
    return [1, *range(step, last + 1, step)] if step > 1 else list(range(1, last + 1))


@dataclass(frozen=True)
class _Frame:
    """Where the axes lie, in the chart's pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def at(self, across: float, down: float) -> Point:
        """A place given in shares of the width and height."""
        return (
            self.left + across * (self.right - self.left),
            self.top + down * (self.bottom - self.top),
        )

    def grid(
        self, columns: Sequence[tuple[float, str]], rows: Sequence[tuple[float, str]]
    ) -> Iterator[Markup]:
        """Hairlines with what they stand for, (share, words)."""
        lines = ""
        for across, words in columns:
            x = self.at(across, 0)[0]
            lines += f"M{coordinate(x)} {coordinate(self.bottom)}v4"
            yield label(words, x, self.bottom + 15, anchor="middle", class_="soft num")
        for down, words in rows:
            y = self.at(0, down)[1]
            lines += f"M{coordinate(self.left)} {coordinate(y)}H{coordinate(self.right)}"
            yield label(words, self.left - 5, y + 3.5, anchor="end", class_="soft num")
        yield element("path", d=lines, class_="grid")
