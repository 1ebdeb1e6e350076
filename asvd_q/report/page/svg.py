"""The few shapes that the charts are drawn with, as escaped SVG text.

Colours are CSS classes and never written here, so that one drawing serves both colour schemes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

__all__ = ["Point", "coordinate", "drawing", "element", "label", "path", "thinned"]

Point = tuple[float, float]


def element(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """An element; children that are not Markup are escaped.

    Args:
        attributes: an underscore stands for a hyphen, one at the end is dropped (`class_`);
            those that are None are left out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            written = coordinate(value) if isinstance(value, (int, float)) else escape(value)
            words.append(f'{key.rstrip("_").replace("_", "-")}="{written}"')
    inside = "".join(escape(child) for child in children)
    return Markup(f"<{' '.join(words)}>{inside}</{name}>" if inside else f"<{' '.join(words)}/>")


def drawing(
    children: Iterable[str], *, name: str, width: float, height: float, fluid: bool = False
) -> Markup:
    """A whole chart.

    Args:
        name: what a reader who cannot see it is told.
        fluid: scaled to the width that there is; else it has its own size.
    """
    return element(
        "svg",
        *children,
        role="img",
        aria_label=name,
        viewBox=f"0 0 {coordinate(width)} {coordinate(height)}",
        width=None if fluid else width,
        height=None if fluid else height,
    )


def label(
    words: str, x: float | str, y: float, *, anchor: str | None = None, class_: str | None = None
) -> Markup:
    """Text with its baseline at y."""
    return element("text", words, x=x, y=y, text_anchor=anchor, class_=class_)


def path(points: Sequence[Point]) -> str:
    """The `d` of a line through points, in relative steps of tenths, which are shortest."""
    tenths = [(round(10 * x), round(10 * y)) for x, y in points]
    if not tenths:
        return ""
    (x, y), *rest = tenths
    words = [f"M{coordinate(x / 10)} {coordinate(y / 10)}"]
    for to_x, to_y in rest:
        step = coordinate((to_x - x) / 10), coordinate((to_y - y) / 10)
        words.append(f"l{step[0]}{'' if step[1].startswith('-') else ' '}{step[1]}")
        x, y = to_x, to_y
    return "".join(words)


def thinned(points: Sequence[Point], tolerance: float) -> list[Point]:
    """As few of the points as keep the line through them within a distance of the whole one.

    Source: Ramer 1972; Douglas and Peucker 1973.
    """
    if len(points) < 3:
        return list(points)
    keep = {0, len(points) - 1}
    spans = [(0, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        distances = [
            _distance(points[index], points[first], points[last])
            for index in range(first + 1, last)
        ]
        if distances and max(distances) > tolerance:
            farthest = first + 1 + distances.index(max(distances))
            keep.add(farthest)
            spans += [(first, farthest), (farthest, last)]
    return [points[index] for index in sorted(keep)]


def coordinate(value: float) -> str:
    """A number to a tenth, without what a reader of SVG does not need."""
    return f"{value:.1f}".removesuffix(".0").replace("-0.", "-.").removeprefix("0") or "0"


def _distance(point: Point, start: Point, end: Point) -> float:
    """From a point to the line through two others, or to where both lie."""
    across, down = end[0] - start[0], end[1] - start[1]
    length = math.hypot(across, down)
    if length == 0:
        return math.hypot(point[0] - start[0], point[1] - start[1])
    return abs(across * (start[1] - point[1]) - (start[0] - point[0]) * down) / length
