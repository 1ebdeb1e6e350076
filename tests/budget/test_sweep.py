"""Trials of a whole model: kept, taken up again, and the same however they were come by."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asvd_q.budget import sweep as sweep_module
from asvd_q.budget.choice import Offering
from asvd_q.budget.counting import Count
from asvd_q.budget.solving import budget_offering, solve_budget
from asvd_q.budget.sweep import LayerTried
from asvd_q.errors import NumericsError, RankError, RecipeError
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.recipe import Recipe
from asvd_q_exporters.onnx import OnnxExporter
from tests.budget.given import recipe
from tests.budget.sweeping import WINDOWS, open_model
from tests.compression.job import hashes, quiet
from tests.models.families import save_family

LAYERS = 14
Tried = Mapping[str, LayerTried]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BlockwiseModel:
    return open_model(save_family("llama", tmp_path_factory.mktemp("model")))


@pytest.fixture
def tried_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the layers that are tried from here on."""
    names: list[str] = []
    original = sweep_module._tried

    def watched(given: Any, model: Any, weight: Any, *rest: Any) -> LayerTried:
        names.append(weight.name)
        return original(given, model, weight, *rest)

    monkeypatch.setattr(sweep_module, "_tried", watched)
    return names


def offered(
    model: BlockwiseModel,
    folder: Path,
    given: Recipe | None = None,
    *,
    windows: Tensor = WINDOWS,
    count: Count | None = None,
    progress: Callable[[str, int, int], None] = quiet,
    known_only: bool = False,
) -> tuple[Tried, Offering]:
    return budget_offering(
        given or recipe(),
        model,
        windows,
        count or Count("float32"),
        folder,
        progress,
        known_only=known_only,
    )


def text_of(tried: Tried) -> dict[str, str]:
    return {name: str(found) for name, found in sorted(tried.items())}


def test_every_layer_is_tried_once(
    model: BlockwiseModel, tmp_path: Path, tried_names: list[str]
) -> None:
    first, offering = offered(model, tmp_path)
    weights = [weight.name for weight in model.skeleton.weights if weight.block is not None]
    assert sorted(tried_names) == sorted(weights)
    assert list(offering.candidates) == weights
    assert all(found.tried and found.uniform for found in first.values())
    before = hashes(tmp_path)
    again, _ = offered(model, tmp_path)
    known, _ = offered(model, tmp_path, known_only=True)
    assert text_of(first) == text_of(again) == text_of(known)
    assert len(tried_names) == LAYERS
    assert hashes(tmp_path) == before


def test_losses_are_numbers_and_floats_lose_nothing(model: BlockwiseModel, tmp_path: Path) -> None:
    tried, offering = offered(model, tmp_path)
    for name, found in tried.items():
        (floats, loss), *others = found.tried
        assert floats.layer.quantization == {"weight": None}
        assert loss == 0
        assert others
        assert all(loss > 0 for _, loss in [*others, *found.uniform])
        assert all(offer.layer.name == name for offer, _ in found.tried)
    losses = [forms[-1].loss for forms in offering.candidates.values()]
    assert max(losses) > 0


class StoppedError(Exception):
    """Stands for any interruption."""


@pytest.mark.parametrize("after", [1, 7, 9])
def test_interrupted_and_resumed(
    after: int, model: BlockwiseModel, tmp_path: Path, tried_names: list[str]
) -> None:
    expected, _ = offered(model, tmp_path / "whole")
    whole = [*tried_names]
    tried_names.clear()

    def stop(stage: str, done: int, total: int) -> None:
        if "forms" in stage and done == after:
            raise StoppedError

    with pytest.raises(StoppedError):
        offered(model, tmp_path / "parts", progress=stop)
    assert tried_names == whole[:after]
    found, _ = offered(model, tmp_path / "parts")
    assert tried_names == whole
    assert text_of(found) == text_of(expected)
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole")


def test_hidden_states_on_disk_change_nothing(model: BlockwiseModel, tmp_path: Path) -> None:
    section = {"corpus": "python-docs", "batch_size": 2, "hidden_states": "disk"}
    disk, _ = offered(model, tmp_path / "disk", recipe(calibration=section))
    memory, _ = offered(model, tmp_path / "memory")
    assert text_of(disk) == text_of(memory)
    assert not list(tmp_path.rglob("*.bin"))
    assert not (tmp_path / "disk/scratch").exists()


def test_the_batch_size_changes_nothing_but_rounding(model: BlockwiseModel, tmp_path: Path) -> None:
    losses: list[dict[str, float]] = []
    for size in (1, 3, 7):
        section = {"corpus": "python-docs", "batch_size": size}
        tried, _ = offered(model, tmp_path / str(size), recipe(calibration=section))
        losses.append(
            {str(one.layer): loss for found in tried.values() for one, loss in found.uniform}
        )
    for other in losses[1:]:
        assert list(other) == list(losses[0])
        # Rounding may move single codes of GPTQ.
        assert other == pytest.approx(losses[0], rel=0.02)


def test_a_damaged_file_is_tried_again(
    model: BlockwiseModel, tmp_path: Path, tried_names: list[str]
) -> None:
    expected, _ = offered(model, tmp_path)
    paths = sorted(tmp_path.rglob("*.json"))
    assert len(paths) == LAYERS
    before = hashes(tmp_path)
    content = json.loads(paths[2].read_text())
    paths[0].write_text(paths[0].read_text()[:-100])
    paths[1].write_text("")
    paths[2].write_text(json.dumps(content | {"key": "another"}))
    paths[3].unlink()
    tried_names.clear()
    found, _ = offered(model, tmp_path)
    assert sorted(tried_names) == sorted(path.stem for path in paths[:4])
    assert text_of(found) == text_of(expected)
    assert hashes(tmp_path) == before


def test_what_was_not_tried_is_not_known(model: BlockwiseModel, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="run `asvd-q search` on it first"):
        offered(model, tmp_path / "new", known_only=True)
    assert not (tmp_path / "new").exists()
    offered(model, tmp_path)
    next(tmp_path.rglob("*.json")).unlink()
    before = hashes(tmp_path)
    with pytest.raises(RecipeError, match="has not been run"):
        offered(model, tmp_path, known_only=True)
    assert hashes(tmp_path) == before


@pytest.fixture(scope="module")
def finished(model: BlockwiseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has the trials of the plain recipe."""
    folder: Path = tmp_path_factory.mktemp("finished")
    offered(model, folder)
    return folder


BUDGET = {"bits_per_weight": 4, "bits": [3, 4], "group_sizes": [16], "ranks": 2}
SAME: dict[str, dict[str, Any]] = {
    "target": {"budget": {**BUDGET, "bits_per_weight": 6}},
    "another target": {
        "budget": {key: value for key, value in BUDGET.items() if key != "bits_per_weight"}
        | {"perplexity": "+2 %"}
    },
    "bound": {"quantize": {"method": "rtn", "max_error": 0.1}},
    "refit": {
        "calibration": {"corpus": "python-docs", "batch_size": 2, "sequential": True},
        "quantize": {"method": "rtn", "refit": True},
        "decompose": {"rank_multiple": 8, "refit": True},
    },
    "export": {"export": [{"format": "onnx"}]},
}
OTHER: dict[str, dict[str, Any]] = {
    "bits": {"budget": {**BUDGET, "bits": [3, 5]}},
    "group sizes": {"budget": {**BUDGET, "group_sizes": [32]}},
    "ranks": {"budget": {**BUDGET, "ranks": 1}},
    "sample": {"budget": {**BUDGET, "sample": 21}},
    "method": {"quantize": {"method": "gptq"}},
    "override": {
        "quantize": {"method": "rtn", "overrides": [{"match": "q_proj", "symmetric": False}]}
    },
    "scaling": {"decompose": {"rank_multiple": 8, "scaling": "rms"}},
    "no factors": {"decompose": None},
    "corrections": {"correct": {"method": "after"}},
    "seed": {"seed": 1},
}


@pytest.mark.parametrize("sections", SAME.values(), ids=SAME)
def test_what_trials_do_not_depend_on(
    sections: dict[str, Any], model: BlockwiseModel, finished: Path
) -> None:
    expected, _ = offered(model, finished, known_only=True)
    found, _ = offered(model, finished, recipe(**sections), known_only=True)
    assert text_of(found) == text_of(expected)


@pytest.mark.parametrize("sections", OTHER.values(), ids=OTHER)
def test_what_trials_depend_on(
    sections: dict[str, Any], model: BlockwiseModel, finished: Path
) -> None:
    with pytest.raises(RecipeError, match="has not been run"):
        offered(model, finished, recipe(**sections), known_only=True)


@pytest.mark.parametrize(
    "options",
    [
        {"windows": WINDOWS.flip(1)},
        {"count": Count("float16")},
        {"count": Count("float32", OnnxExporter())},
    ],
    ids=["tokens", "float type", "format"],
)
def test_trials_depend_on_tokens_and_format(
    options: dict[str, Any], model: BlockwiseModel, finished: Path
) -> None:
    with pytest.raises(RecipeError, match="has not been run"):
        offered(model, finished, known_only=True, **options)


def test_trials_of_a_format_depend_on_its_options(model: BlockwiseModel, tmp_path: Path) -> None:
    halves = OnnxExporter.options_model.model_validate({"dtype": "float16"})
    offered(model, tmp_path, count=Count("float32", OnnxExporter()))
    count = Count("float32", OnnxExporter(halves))
    with pytest.raises(RecipeError, match="has not been run"):
        offered(model, tmp_path, count=count, known_only=True)


def test_fisher_information_and_corrections(model: BlockwiseModel, tmp_path: Path) -> None:
    given = recipe(
        budget={**BUDGET, "correction_ranks": [4]},
        decompose={"rank_multiple": 8, "scaling": "fisher"},
        correct={"method": "after"},
    )
    tried, _ = offered(model, tmp_path, given)
    forms = {one.layer.form for found in tried.values() for one, _ in found.tried}
    assert forms == {"dense", "factors", "correction"}


def test_a_target_out_of_reach_names_what_it_was_solved_around(
    model: BlockwiseModel, tmp_path: Path
) -> None:
    _, offering = offered(model, tmp_path)
    name, (floats, *_) = next(iter(offering.candidates.items()))
    assert floats.layer is not None
    given = recipe(budget={**BUDGET, "bits_per_weight": 1})
    count = Count("float32")
    with pytest.raises(RankError, match=rf"^budget: .*, around {name}$"):
        solve_budget(given, model, WINDOWS, count, tmp_path, quiet, pinned={name: floats.layer})


def test_inputs_that_are_not_finite(tmp_path: Path) -> None:
    model = open_model(save_family("llama", tmp_path / "model"))
    original = model.source.tensor

    def damaged(name: str) -> Tensor:
        found = original(name)
        return found * torch.inf if name.endswith("layers.1.input_layernorm.weight") else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.source), "tensor", lambda self, name: damaged(name))
        with pytest.raises(NumericsError, match=r"model\.layers\.1\.self_attn\.q_proj"):
            offered(model, tmp_path / "search")
