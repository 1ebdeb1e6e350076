"""The allocation benchmark: its settings, its ranks, and the script on a small random model."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asvd_q.errors import RankError
from asvd_q.plan import factor_parameters
from benchmarks import allocation
from benchmarks._parts import PARTS, add_options, settings_of
from benchmarks._points import Points
from benchmarks._ranks import BASELINES, SENSITIVITIES, RankFinder
from benchmarks._setting import Point, Setting
from benchmarks.common import Bench, Options


def parsed(*arguments: str) -> Any:
    parser = ArgumentParser()
    add_options(parser)
    options = parser.parse_args(arguments)
    options.calibration, options.window = ("wikitext2",), 512
    return options


def settings(*arguments: str) -> list[Setting]:
    return settings_of(parsed(*arguments), "m")


DEFAULT = Setting(
    model="m",
    window=512,
    method="optimal",
    sensitivity="fast",
    scaling="whitening",
    sequential=True,
    refit=True,
    calibration=("generated",),
    target=0.9,
)


def test_the_default_is_that_of_the_recipes() -> None:
    dense, *found = settings("--parts", "default", "--targets", "0.9")
    assert found == [DEFAULT]
    assert (dense.method, dense.target, dense.calibration) == ("dense", 1.0, ())


def test_parts_share_what_they_have_in_common() -> None:
    together = settings()
    assert len(set(together)) == len(together)
    single = [found for part in PARTS for found in settings("--parts", part)]
    assert set(single) == set(together)
    assert len(single) > len(together)
    plain = DEFAULT.model_copy(update={"calibration": ("wikitext2",)}).ranks_alone
    for part in ("scalings", "methods", "refit", "calibration"):
        assert plain in settings("--parts", part, "--targets", "0.9")
    assert DEFAULT in settings("--parts", "calibration", "--targets", "0.9")


def test_every_sensitivity_and_allocation_is_compared() -> None:
    found = settings("--parts", "methods", "--targets", "0.9")[1:]
    assert {one.sensitivity for one in found} == {*SENSITIVITIES, None}
    assert {one.method for one in found} == {"optimal", "strs", *BASELINES}
    assert {(one.scaling, one.refit) for one in found} == {("whitening", False)}


def test_every_setting_meets_every_target() -> None:
    found = settings("--parts", "refit,calibration", "--targets", "0.9,0.8")[1:]
    nine, eight = ([one for one in found if one.target == target] for target in (0.9, 0.8))
    assert eight == [one.model_copy(update={"target": 0.8}) for one in nine]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--parts", "scalings,refits"),
        ("--scalings", "whitened"),
        ("--targets", "0.9,1.0"),
        ("--targets", "ninety"),
    ],
)
def test_a_misspelt_option_is_named(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(option, value)
    assert option in capsys.readouterr().err


def make_bench(place: Path) -> Bench:
    return Bench(Options(place / "model", place, ("notes",), ("lines",), 24, None))


Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the script and gives what its JSON then holds."""

    def call(*arguments: str) -> list[dict[str, Any]]:
        json_file = tmp_path / "points.json"
        own = ["--model", place / "model", "--data", place, "--window", 24, "--json", json_file]
        corpora = ["--calibration", "notes", "--corpora", "lines", "--mixture", "notes,lines"]
        command = ["allocation", *own, *corpora, "--cache", place / "cache", *arguments]
        monkeypatch.setattr("sys.argv", list(map(str, command)))
        allocation.main()
        points: list[dict[str, Any]] = json.loads(json_file.read_text())
        return points

    return call


def test_the_script(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piece = run("--parts", "default", "--targets", "0.5")
    dense, default = piece
    assert (dense["method"], dense["kept_ratio"]) == ("dense", 1.0)
    assert (default["calibration"], default["refit"], default["target"]) == (
        ["generated"],
        True,
        0.5,
    )
    assert default["perplexity"].keys() == {"lines"}
    assert default["perplexity"]["lines"] > 1
    assert 0.48 < default["kept_ratio"] <= 0.5

    whole = run("--parts", "refit,calibration", "--targets", "0.5", "--append")
    assert whole[:2] == piece
    assert len(whole) == 1 + 6 + 6 - 2
    factors = [point["perplexity"]["lines"] for point in whole if point["calibration"] == ["notes"]]
    assert len(set(factors)) == len(factors) == 6
    printed = capsys.readouterr().out
    assert printed.count("notes,lines") == 2
    assert f"{whole[-1]['perplexity']['lines']:.3f}" in printed

    def fail(*_: Any) -> Point:
        raise AssertionError("a known point is computed again")

    monkeypatch.setattr(allocation, "compute", fail)
    assert run("--parts", "refit,calibration,default", "--targets", "0.5", "--append") == whole


def test_every_method_keeps_the_target(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.common._SAMPLES", 4)  # an exact sweep runs many batches
    bench = make_bench(place)
    finder = RankFinder(bench, place / "cache" / "search")
    weights = [weight for weight in bench.skeleton.weights if weight.block is not None]
    dense = sum(weight.shape[0] * weight.shape[1] for weight in weights)
    for setting in settings("--parts", "methods", "--targets", "0.7")[1:]:
        ranks = finder.ranks(setting.model_copy(update={"calibration": ("notes",)}))
        kept = sum(
            factor_parameters(weight.shape, ranks[weight.name])
            if weight.name in ranks
            else weight.shape[0] * weight.shape[1]
            for weight in weights
        )
        # One step of a cut may take a tenth off the model; of other methods, a rank off a layer.
        assert (0.6 if setting.method == "strs" else 0.67) * dense < kept <= 0.7 * dense


def test_an_unreachable_target_is_told_and_left_out(place: Path, tmp_path: Path) -> None:
    class Unreachable(RankFinder):
        def ranks(self, setting: Setting) -> dict[str, int]:
            if setting.target < 0.5:
                raise RankError("the target cannot be reached")
            return super().ranks(setting)

    bench, told = make_bench(place), list[str]()
    wanted = [
        DEFAULT.ranks_alone.model_copy(update={"calibration": ("notes",), "target": target})
        for target in (0.3, 0.7)
    ]
    points = Points(Point, None)
    finder = Unreachable(bench, place / "cache" / "search")
    allocation.compute_all(bench, finder, wanted, points, told.append)
    assert [point.target for point in points] == [0.7]
    assert "cannot be reached" in told[0]
