"""The ablation of factor quantization: what its variants change, and the script."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from asvd_q.recipe import Recipe
from benchmarks import factor_ablation
from benchmarks._compressions import Case, CasePoint
from benchmarks.factor_ablation import DEFAULT, VARIANTS, change, sections_of


def case(name: str) -> Case:
    return Case(model="m", window=8, name=name, calibration=("a",), method="gptq", bits=3, kept=0.8)


def recipe(name: str) -> Recipe:
    sections = sections_of(case(name), {"*": 4})
    corpora = {"corpora": ["python-docs"], **sections["calibration"]}
    return Recipe.model_validate({"model": {"path": "."}, **sections, "calibration": corpora})


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != DEFAULT])
def test_every_variant_is_a_recipe_of_its_own(name: str) -> None:
    found, default = recipe(name), recipe(DEFAULT)
    assert found != default
    assert found.decompose is not None
    assert default.decompose is not None
    assert found.decompose.ranks == default.decompose.ranks


def point(name: str, **perplexity: float) -> CasePoint:
    return CasePoint(
        **case(name).model_dump(),
        kept_ratio=0.8,
        layer_bytes=100,
        bytes=200,
        parameters=400,
        perplexity=perplexity,
    )


def test_change_is_the_geometric_mean_over_the_shared_corpora() -> None:
    found = change(point("u", a=11.0, b=20.0, c=1.0), point(DEFAULT, a=10.0, b=16.0))
    assert found == pytest.approx(math.sqrt(1.1 * 1.25) - 1)
    assert point("u").bits_per_weight == 2.0


def test_the_script(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("benchmarks.common._SAMPLES", 4)
    path = tmp_path / "points.json"
    own = ["--model", place / "model", "--data", place, "--window", 24, "--json", path, "--append"]
    corpora = ["--calibration", "notes", "--corpora", "lines"]

    def run(*more: str) -> list[dict[str, object]]:
        monkeypatch.setattr("sys.argv", list(map(str, ["x", *own, *corpora, *more])))
        factor_ablation.main()
        points: list[dict[str, object]] = json.loads(path.read_text())
        return points

    points = run("--bits", "3", "--kept", "1", "--variants", "default,both")
    assert [point["name"] for point in points] == ["default", "both"]
    assert len({point["layer_bytes"] for point in points}) == 1
    printed = capsys.readouterr().out
    assert "+0.00%" in printed
    assert len(run("--bits", "3", "--kept", "1", "--variants", "default,both,v")) == 3
