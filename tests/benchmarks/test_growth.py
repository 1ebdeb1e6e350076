"""Exponents of growth, and the benchmark as a whole at the smallest sizes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from asvd_q.models import SourceModel
from asvd_q.models.skeleton import build_skeleton
from benchmarks import growth
from benchmarks._sweeps import measure
from benchmarks.growth import Point, Size, exponent, exponents, grown, save_model


@pytest.mark.parametrize("power", [-1, 0, 0.5, 1, 2, 3])
def test_exponent_of_a_power(power: float) -> None:
    sizes = [2.0, 4.0, 8.0, 24.0]
    assert exponent(sizes, [7 * size**power for size in sizes]) == pytest.approx(power)


def test_exponent_is_the_least_squares_one() -> None:
    # Logarithms 0, 1, 2 against 0, 1, 1 (base 2): slope ½.
    assert exponent([1, 2, 4], [1, 2, 2]) == pytest.approx(0.5)


def test_no_exponent_of_nothing() -> None:
    # A sweep may find all the memory it needs in what its process was given before.
    assert math.isnan(exponent([1, 2], [0, 3]))


def test_one_axis_at_a_time() -> None:
    assert grown([2, 4], [8], [64, 128, 256]) == [
        Size(2, 8, 64),
        Size(4, 8, 64),
        Size(2, 8, 128),
        Size(2, 8, 256),
    ]


def test_exponents_of_every_axis() -> None:
    points = [
        Point(size, sensitivity, size.layers**power * size.windows * size.width**3, 5, 9)
        for size in grown([2, 4, 8], [1, 2], [64])
        for sensitivity, power in ((growth.SENSITIVITIES[0], 2), (growth.SENSITIVITIES[1], 1))
    ]
    found = exponents(points, lambda point: point.seconds)
    assert found["exact"] == pytest.approx({"layers": 2, "windows": 1})
    assert found["fast"] == pytest.approx({"layers": 1, "windows": 1})
    flat = exponents(points, lambda point: point.memory_bytes)
    assert flat["exact"] == pytest.approx({"layers": 0, "windows": 0})


def test_models_have_the_wanted_size(tmp_path: Path) -> None:
    model = save_model(Size(layers=3, windows=1, width=64), tmp_path)
    shapes = {
        weight.name: weight.shape
        for weight in build_skeleton(SourceModel.open(str(model))).weights
        if weight.block is not None
    }
    assert len(shapes) == 3 * 7
    assert shapes["model.layers.2.mlp.down_proj"] == (64, 192)
    assert shapes["model.layers.0.self_attn.k_proj"] == (32, 64)


def test_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Processes of their own take seconds each to start.
    monkeypatch.setattr("benchmarks.growth.measure_alone", measure)
    json_file = tmp_path / "growth.json"
    sizes = ["--layers", "1,2", "--windows", "1,2", "--widths", "32,64"]
    monkeypatch.setattr("sys.argv", ["growth", *sizes, "--json", str(json_file)])
    growth.main()
    found = json.loads(json_file.read_text())
    assert len(found["points"]) == 2 * 4
    assert found["time_exponents"]["exact"]["layers"] > 0
    assert "exact, memory" in capsys.readouterr().out
