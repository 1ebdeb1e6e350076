"""A recipe calibrated on text that its model generates: sampled once, then taken up again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from asvd_q.errors import CorpusError, ResourceError
from asvd_q.pipeline import prepare_known, run, search
from asvd_q.recipe import load_recipe
from asvd_q.statistics import generated
from tests.cli.runner import write_recipe

SECTIONS = {
    "calibration": {
        "corpora": ["generated"],
        "samples": 3,
        "window": 16,
        "sequential": True,
    },
    "decompose": {"rank_multiple": 8, "refit": True},
    "search": {"kept_ratio": 0.8, "verify": False},
}


def silent(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    run(load_recipe(write_recipe(folder, **SECTIONS)), silent)
    return folder


def test_the_record_names_the_tokens(finished: Path) -> None:
    (kept,) = (finished / "run" / "calibration").iterdir()
    tokens = load_file(kept)["tokens"]
    digest = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
    (corpus,) = json.loads((finished / "run" / "run.json").read_text())["corpora"]
    assert corpus == {
        "corpus": "generated",
        "split": "sampled",
        "use": "calibration",
        "sha256": digest,
    }


@pytest.mark.parametrize("fresh", [False, True])
def test_nothing_is_sampled_twice(
    fresh: bool, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated, "sample_tokens", None)
    recipe = load_recipe(finished / "recipe.yaml")
    run(recipe, silent, fresh=fresh)
    assert search(recipe, silent).ranks


def test_a_plan_takes_up_what_was_searched(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "sample_tokens", None)
    assert prepare_known(load_recipe(finished / "recipe.yaml"))[0].plan.kept_ratio <= 0.8


def test_a_plan_before_the_search_samples_nothing(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, **SECTIONS))
    with pytest.raises(CorpusError, match="run `asvd-q search` on it first"):
        prepare_known(recipe)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_a_run_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("mine")
    with pytest.raises(ResourceError, match="choose another `output`"):
        run(load_recipe(write_recipe(tmp_path, **SECTIONS)), silent)
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]
