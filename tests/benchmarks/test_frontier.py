"""The frontier benchmark: the front itself, what is compared, and the script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import frontier
from benchmarks._compressions import BASE, Case, merged
from benchmarks._front import front
from benchmarks._peers import PEERS
from benchmarks.common import Bench, Options

few = st.integers(0, 4).map(float)  # few values, so that equals are frequent


@given(st.lists(st.tuples(few, few), max_size=8))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    def beaten(one: tuple[float, float]) -> bool:
        return any(other[0] <= one[0] and other[1] <= one[1] and other != one for other in points)

    assert front(points) == {index for index, one in enumerate(points) if not beaten(one)}


def test_sections_are_merged_key_by_key() -> None:
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert merged(base, {"a": {"c": {"f": 4}}, "e": {"g": 5}}) == {
        "a": {"b": 1, "c": {"d": 2, "f": 4}},
        "e": {"g": 5},
    }
    assert base == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


def case(**fields: Any) -> Case:
    return Case(**({"model": "m", "window": 8, "name": "n", "calibration": ("a",)} | fields))


def test_all_that_is_calibrated_is_calibrated_alike() -> None:
    plain = frontier.sections_of(case(method="gptq", bits=3), {}, 32)
    both = frontier.sections_of(case(method="gptq", bits=3, kept=0.8), {"*": 4}, 32)
    assert plain["decompose"] is None
    assert both["decompose"] == BASE["decompose"] | {"ranks": {"*": 4}}
    assert plain["quantize"] == both["quantize"]
    assert plain["calibration"] == both["calibration"] == BASE["calibration"]


def run(place: Path, path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> list[Any]:
    own = ["--model", place / "model", "--data", place, "--window", 24, "--json", path]
    corpora = ["--calibration", "notes", "--corpora", "lines", "--kept", "0.6"]
    command = ["frontier", *own, *corpora, "--cache", path.parent / "cache", *more]
    monkeypatch.setattr("sys.argv", list(map(str, command)))
    frontier.main()
    points: list[Any] = json.loads(path.read_text())
    return points


def test_the_script(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("benchmarks.common._SAMPLES", 4)
    monkeypatch.setattr(frontier, "METHODS", (("nf4", 4), ("gptq", 4)))
    monkeypatch.setattr("benchmarks._compressions.RANK_MULTIPLE", 2)
    picture = tmp_path / "front.svg"
    points = run(
        place, tmp_path / "p.json", monkeypatch, "--peers", "bitsandbytes", "--plot", str(picture)
    )
    found = {point["name"]: point for point in points}
    assert list(found) == [
        "dense",
        "NF4",
        "GPTQ 4",
        "bitsandbytes: NF4",
        "ASVD 0.6",
        "ASVD 0.6 + NF4",
        "ASVD 0.6 + GPTQ 4",
    ]
    dense = found["dense"]
    assert dense["layer_bytes"] == 4 * dense["parameters"]  # the model is in float32
    others = dense["bytes"] - dense["layer_bytes"]
    assert all(point["bytes"] - point["layer_bytes"] == others for point in points)
    assert found["ASVD 0.6"]["kept_ratio"] <= 0.6
    peer = found["bitsandbytes: NF4"]
    assert peer["layer_bytes"] == found["NF4"]["layer_bytes"]
    assert peer["disk_bytes"] > peer["layer_bytes"]
    assert peer["perplexity"]["lines"] == pytest.approx(
        found["NF4"]["perplexity"]["lines"], rel=0.2
    )
    assert picture.read_text().lstrip().startswith("<?xml")
    assert "ASVD 0.6 + GPTQ 4" in capsys.readouterr().out


@pytest.mark.slow
def test_gptqmodel_quantizes_the_same_layers(place: Path) -> None:
    """Its whole pipeline on the same windows; GPTQ of a random model is as good as ours."""
    options = Options(place / "model", place, ("notes",), ("lines",), 24, None)
    bench = Bench(options)
    wanted = case(name="gptqmodel: GPTQ 4", calibration=("notes",), method="gptq", bits=4)
    point = PEERS["gptqmodel"].measure(bench, wanted, 16)
    ours = bench.compressed(frontier.sections_of(wanted, {}, 16))
    assert point.layer_bytes == ours.layer_bytes
    assert point.disk_bytes is not None
    assert point.disk_bytes > point.layer_bytes
    assert point.perplexity["lines"] == pytest.approx(ours.perplexity["lines"], rel=0.05)
