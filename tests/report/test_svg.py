"""Lines and text as SVG."""

from __future__ import annotations

import math
import re

import pytest
from markupsafe import Markup

from asvd_q.report.page.charts import SHADES, shade
from asvd_q.report.page.svg import Point, coordinate, element, label, path, thinned


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (0.5, ".5"), (-0.5, "-.5"), (10.0, "10"), (3.26, "3.3"), (-12.04, "-12")],
)
def test_coordinates_are_short(value: float, words: str) -> None:
    assert coordinate(value) == words


def test_what_is_not_markup_is_escaped() -> None:
    assert element("g", "<a>", Markup("<b/>"), class_='"') == '<g class="&#34;">&lt;a&gt;<b/></g>'
    assert element("rect", x=1.0, y=None) == '<rect x="1"/>'
    assert label("a<b", "100%", 2, anchor="end") == (
        '<text x="100%" y="2" text-anchor="end">a&lt;b</text>'
    )


def test_relative_steps_add_up_to_where_the_line_ends() -> None:
    points = [(0.04 * step, 10 - 0.13 * step) for step in range(400)]
    steps = re.findall(r"(-?[\d.]+) ?(-?[\d.]+)", path(points))
    assert sum(float(x) for x, _ in steps) == pytest.approx(points[-1][0], abs=0.06)
    assert sum(float(y) for _, y in steps) == pytest.approx(points[-1][1], abs=0.06)
    assert path([]) == ""


def test_a_thinned_line_stays_where_it_was() -> None:
    points: list[Point] = [(float(x), 100 * 0.9**x) for x in range(60)]
    kept = thinned(points, 0.5)
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert len(kept) < 15
    for x, y in points:
        before = max(point for point in kept if point[0] <= x)
        after = min(point for point in kept if point[0] >= x)
        across, down = after[0] - before[0], after[1] - before[1]
        if across:
            off = abs(before[1] + (x - before[0]) * down / across - y)
            assert off * across / math.hypot(across, down) <= 0.5


@pytest.mark.parametrize("points", [[], [(0.0, 0.0)], [(0.0, 0.0), (1.0, 1.0)]])
def test_short_lines_keep_all_their_points(points: list[Point]) -> None:
    assert thinned(points, 1.0) == points


def test_a_line_that_comes_back_is_no_point() -> None:
    assert len(thinned([(0.0, 0.0), (5.0, 0.0), (0.0, 0.0)], 1.0)) == 3


def test_shades_cover_their_range() -> None:
    assert {shade(step / 100) for step in range(101)} == set(range(SHADES))
