"""Computing a study: every model once, kept at once, and as good as a run of its own."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from asvd_q.evaluation.quality import Quality, distant_quality
from asvd_q.evaluation.runners import model_runner
from asvd_q.pipeline import run
from asvd_q.progress import silent
from asvd_q.recipe import load_recipe
from asvd_q.search import sensitivities
from asvd_q.study.load import load_study
from asvd_q.study.record import StudyRecord
from asvd_q.study.results import POINTS, Results
from asvd_q.study.run import run_study
from asvd_q.study.workbench import Ready, Workbench
from tests.study.given import write_study


def compute(path: Path, *overrides: str, told: list[str] | None = None) -> StudyRecord:
    loaded = load_study(path, overrides)
    return run_study(
        loaded.points,
        loaded.output,
        name=loaded.title,
        distances=loaded.section.distances,
        tell=[].append if told is None else told.append,
    )


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the points that are computed."""
    keys: list[str] = []
    original = Workbench.compute

    def spy(self: Workbench, ready: Ready) -> Any:
        keys.append(ready.key)
        return original(self, ready)

    monkeypatch.setattr(Workbench, "compute", spy)
    return keys


def test_points_of_one_model_are_computed_once(
    place: Path, tmp_path: Path, computed: list[str]
) -> None:
    told: list[str] = []
    record = compute(write_study(tmp_path, place=place), told=told)
    assert len(record.points) == len(record.rows) == 4
    assert len(computed) == len(set(computed)) == 3
    keys = {tuple(point.settings.values()): point.key for point in record.points}
    assert keys["whitening", "0.5"] == keys["whitening", "1"]
    assert len([line for line in told if line.startswith("[")]) == 3
    assert not list((tmp_path / "study").rglob("*.bin"))


@pytest.mark.parametrize("quantize", [None, {"method": "gptq", "bits": 4, "group_size": 16}])
def test_a_point_is_what_a_run_of_its_recipe_gives(
    quantize: dict[str, Any] | None, place: Path, tmp_path: Path
) -> None:
    """The second point takes its statistics from the first, and fisher's are gathered late."""
    vary = {"decompose.scaling": ["abs_mean", "whitening", "fisher"]}
    path = write_study(tmp_path, place=place, vary=vary, set={"quantize": quantize})
    for point in compute(path).points:
        recipe = load_recipe(
            tmp_path / "recipe.yaml",
            [
                f"output={tmp_path / 'run'}",
                f"decompose.scaling={point.settings['decompose.scaling']}",
                f"quantize={quantize or 'null'}",
            ],
        )
        record = run(recipe, silent, fresh=True)
        assert point.result is not None
        assert point.result.quality == record.quality
        assert point.dense == record.dense_quality
        assert point.result.total_bytes == record.total_bytes.after
        assert point.result.kept_ratio == record.parameters.ratio


def test_a_study_that_is_known_computes_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_study(tmp_path, place=place)
    first = compute(path)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something is computed again")

    monkeypatch.setattr(Workbench, "compute", fail)
    monkeypatch.setattr("asvd_q.study.workbench.model_runner", fail)
    told: list[str] = []
    assert compute(path, told=told) == first
    assert told == ["3 of 3 models were known already"]


def test_an_interrupted_study_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[str]
) -> None:
    path = write_study(tmp_path, place=place)
    with monkeypatch.context() as patch:
        whole, calls = distant_quality, []

        def interrupted(*args: Any, **kwargs: Any) -> Quality:
            calls.append(args)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return whole(*args, **kwargs)

        patch.setattr("asvd_q.study.workbench.distant_quality", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compute(path)
    assert Results(tmp_path / "study").point(computed[0]) is not None
    assert Results(tmp_path / "study").point(computed[1]) is None
    record = compute(path)
    assert len(computed) == 2 + 2
    assert computed[1] == computed[2]
    fresh = compute(path, f"output={tmp_path / 'fresh'}")
    for point, other in zip(record.points, fresh.points, strict=True):
        assert point.result is not None
        assert other.result is not None
        assert point.result.quality == other.result.quality


def test_a_damaged_file_of_points_counts_for_nothing(
    place: Path, tmp_path: Path, computed: list[str]
) -> None:
    path = write_study(tmp_path, place=place, vary={"decompose.kept_ratio": [0.7]})
    compute(path)
    (tmp_path / "study" / POINTS).write_text("{")
    compute(path)
    assert len(computed) == 2


def test_a_point_that_fails_does_not_end_the_study(
    place: Path, tmp_path: Path, computed: list[str]
) -> None:
    path = write_study(
        tmp_path,
        place=place,
        sections={
            "search": {"kept_ratio": 0.8, "verify": False},
            "decompose": {"rank_multiple": 4},
        },
        vary={"search.kept_ratio": [0.001, 0.8]},
    )
    told: list[str] = []
    out_of_reach, done = compute(path, told=told).points
    assert out_of_reach.result is None
    assert out_of_reach.failure is not None
    assert "kept" in out_of_reach.failure
    assert done.result is not None
    assert done.result.kept_ratio <= 0.8
    assert any("failed: " in line for line in told)
    compute(path)
    assert len(computed) == 3  # what failed is tried again, what did not is not


def test_sensitivities_are_found_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = []
    original = sensitivities.fast_losses

    def spy(*args: Any, **kwargs: Any) -> Any:
        swept.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(sensitivities, "fast_losses", spy)
    path = write_study(
        tmp_path,
        place=place,
        sections={
            "search": {"kept_ratio": 0.8, "verify": False},
            "decompose": {"rank_multiple": 4},
        },
        vary={"search.kept_ratio": [0.9, 0.7]},
    )
    kept = [point.result.kept_ratio for point in compute(path).points if point.result is not None]
    assert len(swept) == 1
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 2


def test_the_dense_model_is_run_once_for_a_text(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def spy(source: Any, replaced: Any = None, **options: Any) -> Any:
        runner = model_runner(source, replaced, **options)
        if replaced is None:
            original = runner.score

            def score(batches: Any) -> Any:
                opened.append(batches)
                return original(batches)

            monkeypatch.setattr(runner, "score", score)
        return runner

    monkeypatch.setattr("asvd_q.study.workbench.model_runner", spy)
    compute(write_study(tmp_path, place=place))
    assert len(opened) == 1


def test_without_room_on_the_disk_the_dense_model_is_run_for_every_point(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = compute(write_study(tmp_path, place=place))
    monkeypatch.setattr("asvd_q.study.dense._SPARE", 10**12)
    tight = compute(write_study(tmp_path, place=place), f"output={tmp_path / 'tight'}")
    assert [row.corpora for row in tight.rows] == [row.corpora for row in roomy.rows]


def test_perplexity_alone(place: Path, tmp_path: Path) -> None:
    [row, *_] = compute(write_study(tmp_path, place=place, distances=False)).rows
    [whole, *_] = compute(write_study(tmp_path, place=place)).rows
    assert row.corpora[0].kl is row.corpora[0].agreement is None
    assert row.corpora[0].perplexity == whole.corpora[0].perplexity


def test_repetitions_have_a_mean_and_a_spread(place: Path, tmp_path: Path) -> None:
    path = write_study(
        tmp_path,
        place=place,
        vary={"calibration.samples": [2]},
        repeat={"calibration.seed": [1, 2, 3]},
    )
    record = compute(path)
    [row] = record.rows
    found = [one.result.quality[0].perplexity for one in record.points if one.result is not None]
    spread = row.corpora[0].perplexity
    assert len(set(found)) == spread.count == 3
    assert spread.mean == pytest.approx(sum(found) / 3)
    assert spread.deviation == pytest.approx(statistics.stdev(found))
    assert (spread.low, spread.high) == (min(found), max(found))


def test_another_setting_is_another_point(place: Path, tmp_path: Path, computed: list[str]) -> None:
    path = write_study(tmp_path, place=place, vary={"decompose.kept_ratio": [0.7]})
    compute(path)
    for changed in ("evaluate.windows=2", "calibration.samples=2", "calibration.seed=1", "seed=1"):
        before = len(computed)
        compute(path, changed)
        assert len(computed) == before + 1, changed
    before = len(computed)
    compute(path)
    assert len(computed) == before
