"""Resolved recipes as they are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from asvd_q.errors import RecipeError
from asvd_q.recipe import Recipe
from asvd_q.report.recipes import flatten, hub_corpora, read_recipe, without_places


def test_a_recipe_is_read_without_being_checked(tmp_path: Path) -> None:
    assert read_recipe(tmp_path) is None
    (tmp_path / "recipe.yaml").write_text("later: {key: 1e-6}\n", encoding="utf-8")
    assert read_recipe(tmp_path) == {"later": {"key": 1e-6}}
    (tmp_path / "recipe.yaml").write_bytes(b"a: [\xff\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml, line"):
        read_recipe(tmp_path)


def test_paths_become_names() -> None:
    recipe = {
        "model": {"path": "/a/b/model"},
        "output": "C:\\runs\\small",
        "calibration": {"corpora": [{"source": "~/own.txt"}, {"source": "hub:owner/texts"}]},
        "seed": 0,
        "name": None,
        "relative": "runs/x",
    }
    assert without_places(recipe) == {
        "model": {"path": "model"},
        "output": "small",
        "calibration": {"corpora": [{"source": "own.txt"}, {"source": "hub:owner/texts"}]},
        "seed": 0,
        "name": None,
        "relative": "runs/x",
    }
    assert recipe["output"] == "C:\\runs\\small"


def test_keys_are_dotted_and_ranks_stay_whole() -> None:
    found = flatten(
        {
            "decompose": {"alpha": 0.5, "ranks": {"model.layers.0.q_proj": 8}, "exclude": []},
            "search": None,
            "export": [{"format": "onnx"}],
            "quantize": {"overrides": [{"match": "*"}]},
        }
    )
    assert found == {
        "decompose.alpha": 0.5,
        "decompose.ranks": {"model.layers.0.q_proj": 8},
        "decompose.exclude": [],
        "search": None,
        "export.0.format": "onnx",
        "quantize.overrides": [{"match": "*"}],
    }


def test_data_sets_of_the_hub() -> None:
    corpora = ["hub:owner/texts:plain", "hub:owner/texts:other", "hub:owner/code", "python-docs"]
    model = {"path": "owner/model"}
    recipe = Recipe.model_validate({"model": model, "calibration": {"corpora": corpora}})
    dumped = recipe.model_dump(mode="json")
    assert hub_corpora(dumped, "calibration") == ["owner/texts", "owner/code"]
    assert hub_corpora(dumped, "evaluate") == []
