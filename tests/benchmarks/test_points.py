"""Points of a long benchmark: what is kept of an earlier run, and what is written when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from benchmarks._points import Points
from benchmarks._setting import Point, Setting


def setting(**changed: Any) -> Setting:
    fields = {"model": "m", "window": 8, "calibration": ("a", "b"), "target": 0.9}
    return Setting(**(fields | changed))


def point(settings: Setting, **perplexity: float) -> Point:
    return Point(**settings.model_dump(), kept_ratio=0.89, perplexity=perplexity, seconds=1.5)


def test_every_point_is_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "points.json"
    points = Points(Point, path)
    for count, target in enumerate((0.9, 0.8, 0.7), start=1):
        points.add(point(setting(target=target), a=2.0))
        written = json.loads(path.read_text())
        assert written == points.content()
        assert [found["target"] for found in written] == [0.9, 0.8, 0.7][:count]
    assert not list(path.parent.glob("*.partial"))


def test_an_earlier_run_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    Points(Point, path).add(point(setting(), a=2.0, b=3.0))
    points = Points(Point, path, append=True)
    assert [found.setting for found in points] == [setting()]
    assert points.has(setting(), ("a", "b"))
    assert not points.has(setting(), ("a", "c"))
    points.add(point(setting(target=0.8), a=2.5))
    assert [found["target"] for found in json.loads(path.read_text())] == [0.9, 0.8]


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "other"},
        {"window": 16},
        {"method": "strs"},
        {"sensitivity": None},
        {"scaling": "none"},
        {"sequential": True},
        {"refit": True},
        {"calibration": ("b", "a")},
        {"target": 0.8},
    ],
)
def test_no_setting_is_taken_for_another(changed: dict[str, Any]) -> None:
    points = Points(Point, None)
    points.add(point(setting(), a=2.0))
    assert points.has(setting(), ("a",))
    assert not points.has(setting(**changed), ("a",))


def test_ranks_are_shared_where_the_compression_alone_differs() -> None:
    assert setting(sequential=True, refit=True).ranks_alone == setting()
    assert setting(scaling="none").ranks_alone != setting()


def test_perplexities_of_other_corpora_stay() -> None:
    points = Points(Point, None)
    points.add(point(setting(), a=2.0, b=3.0))
    points.add(point(setting(), b=4.0, c=5.0))
    assert [found.perplexity for found in points] == [{"a": 2.0, "b": 4.0, "c": 5.0}]


def test_without_append_a_file_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    Points(Point, path).add(point(setting(), a=2.0))
    points = Points(Point, path)
    assert not list(points)
    points.add(point(setting(target=0.8), a=2.0))
    assert [found["target"] for found in json.loads(path.read_text())] == [0.8]


@pytest.mark.parametrize("content", ["", "{}", '[{"method": "dense"}]'])
def test_what_is_no_list_of_points_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    path.write_text(content)
    with pytest.raises(ValidationError):
        Points(Point, path, append=True)
    assert path.read_text() == content
