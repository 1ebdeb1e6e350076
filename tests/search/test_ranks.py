"""The search as a whole: targets met, sweeps kept, ranks that a recipe takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from asvd_q import pipeline
from asvd_q.errors import RankError, RecipeError
from asvd_q.preparation import prepare
from asvd_q.recipe import Recipe, load_recipe
from asvd_q.search.ranks import SearchResult
from tests.cli.runner import write_recipe


def _silent(stage: str, done: int, total: int) -> None:
    pass


def _recipe(folder: Path, **search: Any) -> Recipe:
    return load_recipe(
        write_recipe(
            folder,
            decompose={"rank_multiple": 8, "scaling": "whitening"},
            search={"verify": False, **search},
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the fast sensitivities of wren are kept."""
    folder = tmp_path_factory.mktemp("search")
    pipeline.search(_recipe(folder, kept_ratio=0.9), _silent)
    return folder


def _search(folder: Path, **search: Any) -> SearchResult:
    return pipeline.search(_recipe(folder, **search), _silent)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when sensitivities are taken again."""

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("the sweep was repeated")

    monkeypatch.setattr("asvd_q.search.sensitivities.fast_losses", forbidden)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("method", ["optimal", "strs"])
@pytest.mark.parametrize("ratio", [0.5, 0.7, 0.95])
def test_kept_ratio_is_met(folder: Path, method: str, ratio: float) -> None:
    result = _search(folder, kept_ratio=ratio, method=method)
    total = sum(rows * columns for rows, columns in result.shapes.values())
    assert result.allocation.parameters <= ratio * total
    assert result.allocation.step is None or result.allocation.slack < result.allocation.step


@pytest.mark.usefixtures("no_model")
def test_optimal_predicts_no_more_loss_than_strs(folder: Path) -> None:
    optimal, strs = (
        _search(folder, kept_ratio=0.7, method=method) for method in ("optimal", "strs")
    )
    assert optimal.allocation.loss <= strs.allocation.loss


@pytest.mark.usefixtures("no_model")
def test_size_counts_the_whole_model(folder: Path) -> None:
    recipe = _recipe(folder, size="11.5 MiB")
    result = pipeline.search(recipe, _silent)
    other = 8192 * 256 * 2 + 13 * 256 * 2  # embedding and norms in bfloat16
    assert other + result.allocation.bytes <= 11.5 * 2**20
    assert other + result.allocation.bytes > 11.4 * 2**20


@pytest.mark.usefixtures("no_model")
def test_loss_bound(folder: Path) -> None:
    result = _search(folder, max_loss_increase=0.02)
    assert 0.01 < result.allocation.loss <= 0.02


@pytest.mark.usefixtures("no_model")
def test_an_unreachable_target_says_what_can_be_reached(folder: Path) -> None:
    with pytest.raises(RankError, match=r"kept ratio of 0\.\d+"):
        _search(folder, kept_ratio=0.01)
    with pytest.raises(RankError, match="MiB for the whole model"):
        _search(folder, size="2 MiB")


def test_ranks_come_back_as_a_recipe(folder: Path) -> None:
    result = _search(folder, kept_ratio=0.8)
    section = yaml.safe_load((folder / "run/search/ranks.yaml").read_text())["decompose"]
    assert section["ranks"] == result.ranks
    for suffix in ("png", "svg"):
        assert (folder / f"run/search/sensitivity.{suffix}").stat().st_size > 1000
        assert (folder / f"run/search/kept-ratio.{suffix}").stat().st_size > 1000


def test_a_plan_wants_the_search_first(folder: Path) -> None:
    prepared = prepare(_recipe(folder, kept_ratio=0.8))
    with pytest.raises(RecipeError, match="still to be searched"):
        _ = prepared.plan


def test_a_plan_takes_the_ranks_of_a_finished_search(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="run `asvd-q search`"):
        pipeline.prepare_known(_recipe(tmp_path, kept_ratio=0.8))
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
    found = _search(folder, kept_ratio=0.8)
    prepared, known = pipeline.prepare_known(_recipe(folder, kept_ratio=0.8))
    assert prepared.plan.ranks == found.ranks
    assert known == found


def test_run_takes_the_ranks_of_the_search(folder: Path) -> None:
    recipe = _recipe(folder, kept_ratio=0.8)
    found = pipeline.search(recipe, _silent)
    record = pipeline.run(recipe, _silent)
    ranks = {layer.name: layer.rank for layer in record.layers if layer.rank is not None}
    assert ranks == found.ranks
    assert record.parameters.after == found.allocation.parameters
    resolved = load_recipe(folder / "run/recipe.yaml")
    assert resolved.search is None
    assert resolved.decompose is not None
    assert resolved.decompose.ranks == found.ranks


def test_layers_must_be_left_to_search(tmp_path: Path) -> None:
    section = {"exclude": ["*"]}
    recipe = load_recipe(write_recipe(tmp_path, decompose=section, search={"kept_ratio": 0.9}))
    with pytest.raises(RecipeError, match=r"decompose\.include and decompose\.exclude"):
        pipeline.search(recipe, _silent)


_NARROW = {"include": ["*.0.*.k_proj", "*.5.*.up_proj"], "rank_multiple": 8}
"""Two layers of the first and the last block."""


def _hidden_states(folder: Path, place: str, **search: Any) -> Recipe:
    calibration = {"corpus": "python-docs", "samples": 2, "window": 32, "hidden_states": place}
    folder.mkdir(exist_ok=True)
    return load_recipe(
        write_recipe(
            folder,
            calibration=calibration,
            decompose=_NARROW,
            search={"kept_ratio": 0.99, "ratios": [0.5], "verify": False, **search},
        )
    )


@pytest.mark.parametrize("sensitivity", ["fast", "exact"])
def test_hidden_states_on_disk_give_the_same_losses(tmp_path: Path, sensitivity: str) -> None:
    found = {
        place: pipeline.search(
            _hidden_states(tmp_path / place, place, sensitivity=sensitivity), _silent
        ).losses
        for place in ("memory", "disk")
    }
    assert found["disk"] == found["memory"]
    assert not (tmp_path / "disk/run/search/scratch").exists()


@pytest.mark.parametrize("sensitivity", ["fast", "exact"])
def test_hidden_states_are_removed_after_an_error(tmp_path: Path, sensitivity: str) -> None:
    written: list[int] = []

    def fail(stage: str, done: int, total: int) -> None:
        if stage == "sensitivity":
            written.append(len(list((tmp_path / "run/search/scratch").rglob("*.bin"))))
            raise MemoryError

    with pytest.raises(MemoryError):
        pipeline.search(_hidden_states(tmp_path, "disk", sensitivity=sensitivity), fail)
    assert written[0] > 0
    assert not (tmp_path / "run/search/scratch").exists()


def test_hidden_states_of_a_killed_search_are_removed(tmp_path: Path) -> None:
    recipe = _hidden_states(tmp_path, "disk")
    found = pipeline.search(recipe, _silent)
    left = tmp_path / "run/search/scratch/dense/00000.bin"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    assert pipeline.prepare_known(recipe)[0].plan.ranks == found.ranks
    assert left.exists()
    pipeline.search(recipe, _silent)
    assert not (tmp_path / "run/search/scratch").exists()


def test_a_layer_that_no_token_reaches_stays_dense_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = "model.layers.0.self_attn.k_proj"
    calls: list[int] = []

    def one_layer(*args: object, **kwargs: object) -> dict[str, Any]:
        calls.append(1)
        return {reached: torch.linspace(0.1, 0, 129)}

    monkeypatch.setattr("asvd_q.search.sensitivities.fast_losses", one_layer)
    recipe = _hidden_states(tmp_path, "memory", kept_ratio=0.9999)
    first, second = (pipeline.search(recipe, _silent) for _ in range(2))
    assert calls == [1]
    assert list(first.ranks) == [reached]
    assert first.ranks == second.ranks


def test_an_interrupted_exact_sweep_goes_on(tmp_path: Path) -> None:
    search = {"kept_ratio": 0.99, "sensitivity": "exact", "ratios": [0.5], "verify": False}
    section = {"include": ["*.k_proj"], "rank_multiple": 8}
    recipe = load_recipe(write_recipe(tmp_path, decompose=section, search=search))
    undisturbed = pipeline.search(
        recipe.model_copy(update={"output": str(tmp_path / "undisturbed")}), _silent
    )

    class Interrupted(Exception):  # noqa: N818
        pass

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage != "checking weights" and done == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        pipeline.search(recipe, interrupt)
    kept = list((tmp_path / "run/search").rglob("model.layers.*.json"))
    assert 0 < len(kept) < 6
    assert pipeline.search(recipe, _silent).ranks == undisturbed.ranks
