"""A study's file, its options, and the points that come of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asvd_q.errors import RecipeError
from asvd_q.study.labels import label_of
from asvd_q.study.load import load_study
from tests.study.given import PLOT, write_study


def settings(path: Path, *overrides: str, only: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [tuple(point.settings.values()) for point in load_study(path, overrides, only).points]


def test_every_combination_is_a_point(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path))
    assert [tuple(point.settings.values()) for point in study.points] == [
        ("abs_mean", "0.5"),
        ("abs_mean", "1"),
        ("whitening", "0.5"),
        ("whitening", "1"),
    ]
    sections = [point.recipe.decompose for point in study.points]
    assert [(one.scaling, one.alpha) for one in sections if one is not None] == [
        ("abs_mean", 0.5),
        ("abs_mean", 1),
        ("whitening", 0.5),
        ("whitening", 1),
    ]
    assert study.output == tmp_path / "study"


def test_values_with_names_and_structures(tmp_path: Path) -> None:
    both = [str(tmp_path / "text.txt"), {"source": "generated", "weight": 3}]
    path = write_study(
        tmp_path, vary={"calibration.corpora": {"own": ["generated"], "mixed": both}}, set={}
    )
    points = load_study(path).points
    assert [point.settings["calibration.corpora"] for point in points] == ["own", "mixed"]
    calibration = points[1].recipe.calibration
    assert calibration is not None
    assert [(one.name, one.weight) for one in calibration.corpora] == [
        ("text", 1),
        ("generated", 3),
    ]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (None, "none"),
        (True, "true"),
        (0.50, "0.5"),
        (["python-docs", "generated"], "python-docs + generated"),
        (["/place/news.{split}.txt"], "news"),
        ([{"source": "generated", "weight": 3}], "generated (weight 3)"),
        ({"method": "gptq", "bits": 3}, "method gptq, bits 3"),
    ],
)
def test_values_get_short_names(value: Any, label: str) -> None:
    assert label_of(value) == label


def test_set_comes_before_what_is_varied(tmp_path: Path) -> None:
    path = write_study(tmp_path, set={"decompose.kept_ratio": 0.5, "evaluate.windows": 2})
    for point in load_study(path, ["evaluate.windows=1"]).points:
        assert point.recipe.decompose is not None
        assert point.recipe.decompose.kept_ratio == 0.5
        assert point.recipe.evaluate is not None
        assert point.recipe.evaluate.windows == 1


def test_an_option_replaces_the_values_of_a_varied_key(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    assert settings(path, "decompose.alpha=[2]") == [("abs_mean", "2"), ("whitening", "2")]
    assert settings(path, "decompose.scaling=rms") == [("rms", "0.5"), ("rms", "1")]
    named = "decompose.alpha={small: 0.1}"
    assert settings(path, named) == [("abs_mean", "small"), ("whitening", "small")]
    assert load_study(path, ["output=elsewhere"]).output == Path("elsewhere")


def test_combinations_can_be_left_out(tmp_path: Path) -> None:
    path = write_study(
        tmp_path, without=[{"decompose.scaling": "whitening", "decompose.alpha": [1, 2]}]
    )
    assert ("whitening", "1") not in settings(path)
    assert len(settings(path)) == 3


def test_only_keeps_what_is_named(tmp_path: Path) -> None:
    path = write_study(tmp_path, repeat={"calibration.seed": [1, 2]})
    assert (
        settings(path, only=("decompose.alpha=1", "decompose.scaling=whitening"))
        == [("whitening", "1")] * 2
    )
    both = ("decompose.alpha=1", "decompose.alpha=0.5", "calibration.seed=2")
    assert len(settings(path, only=both)) == 4


def test_repetitions_are_points_of_one_setting(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, repeat={"calibration.seed": [1, 2]}))
    assert len(study.points) == 8
    assert [point.repeat["calibration.seed"] for point in study.points[:2]] == ["1", "2"]
    assert study.points[0].settings == study.points[1].settings


def test_corpora_may_lie_beside_the_study(tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "apart").mkdir()
    path = tmp_path / "apart" / "study.yaml"
    path.write_text("recipe: ../recipe.yaml\nvary: {calibration.corpora: [[mine.txt]]}\n")
    (tmp_path / "apart" / "mine.txt").write_text("text")
    [point] = load_study(path).points
    assert point.recipe.calibration is not None
    assert point.recipe.calibration.corpora[0].source == str(tmp_path / "apart" / "mine.txt")


def test_nothing_is_exported(tmp_path: Path) -> None:
    path = write_study(tmp_path, sections={"export": [{"format": "transformers"}]})
    assert {point.recipe.export for point in load_study(path).points} == {()}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"varied": {}}, "did you mean 'vary'"),
    ({"vary": {}}, "vary is empty"),
    ({"vary": {"decompose.alpha": 1}}, "vary.'decompose.alpha' is 1: expected a list"),
    ({"vary": {"decompose.alfa": [1]}}, "did you mean 'alpha'"),
    ({"vary": {"decompose.alpha": [1, 9]}}, "vary decompose.alpha=9: decompose.alpha is 9"),
    ({"vary": {"decompose.alpha": [1, 1.0]}}, "two values that are called '1'"),
    ({"set": {"decompose.alpha": 1}}, "decompose.alpha is in `vary` and in `set`"),
    ({"set": {"evaluate": None}}, "no corpora in an `evaluate` section"),
    ({"set": {"seed": 1}, "repeat": {"seed": [1]}}, "seed is in `repeat` and in `set`"),
    ({"without": [{"seed": 1}]}, "seed is not varied"),
    ({"without": [{"decompose.alpha": [0.5, 1]}]}, "leaves all of them out"),
    ({"plot": {"kind": "bars"}}, "plot"),
    ({"plot": PLOT | {"x": "seed"}}, "seed is not in `vary`"),
    ({"plot": {"kind": "lines", "x": "decompose.alpha"}}, "decompose.scaling apart"),
    ({"plot": PLOT | {"panel": "decompose.alpha"}}, "names one key twice"),
    ({"plot": PLOT | {"metric": "kl"}, "distances": False}, "distances: true"),
    ({"recipe": "absent.yaml"}, "absent.yaml"),
    ({"recipe": None}, "recipe is missing"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_named(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_study(tmp_path, **fields)
    with pytest.raises(RecipeError) as caught:
        load_study(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("decompose.alpha=3", "its values are 0.5, 1"),
        ("decompose.beta=3", "varies decompose.scaling, decompose.alpha"),
    ],
)
def test_only_names_what_there_is(only: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--only") as caught:
        load_study(write_study(tmp_path), only=[only])
    assert message in str(caught.value)
