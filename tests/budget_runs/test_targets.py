"""Whole runs under a budget: its target is met by what lies on the disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asvd_q.budget.solving import BudgetResult
from asvd_q.errors import RankError, RecipeError
from asvd_q.opening import STORE
from asvd_q.pipeline import prepare_known, run, search
from asvd_q.preparation import prepare, read_tokens
from asvd_q.recipe import Recipe, load_recipe
from asvd_q.rounds import ROUNDS
from asvd_q.store import Store
from asvd_q_exporters.onnx import OnnxExporter
from tests.budget_runs.given import (
    BLOCKS,
    OTHER_BYTES,
    WEIGHTS,
    Make,
    layer_bytes,
    open_store,
    stages,
)
from tests.compression.job import hashes, quiet
from tests.models.families import plain_model


@pytest.mark.parametrize(("share", "method"), [(3.5, "gptq"), (6.0, "rtn")])
def test_a_size_is_met_by_what_is_stored(share: float, method: str, make: Make) -> None:
    limit = OTHER_BYTES + int(share * WEIGHTS / 8)
    recipe = make({"size": f"{limit} B"}, quantize={"method": method})
    record = run(recipe, quiet)
    assert stages(record) == ["prepare", "search", "compress", "evaluate"]
    assert record.warnings == ()
    assert limit - 300 < record.total_bytes.after <= limit
    store = open_store(recipe)
    assert layer_bytes(store) == record.layer_bytes.after
    assert record.total_bytes.after == record.layer_bytes.after + OTHER_BYTES
    found = json.loads((Path(recipe.output) / "search/budget.json").read_text())
    assert (found["bytes"], found["format"]) == (record.total_bytes.after, "store")
    assert {layer.name: layer.form for layer in store.plan} == {
        name: layer["form"] for name, layer in found["layers"].items()
    }
    assert not (Path(recipe.output) / ROUNDS).exists()


def test_bits_per_weight(make: Make) -> None:
    record = run(make({"bits_per_weight": 5}), quiet)
    assert record.parameters.before == WEIGHTS
    assert 4.9 < 8 * record.layer_bytes.after / WEIGHTS <= 5


def test_corrections_on_offer(make: Make) -> None:
    """Real bytes, also where codes have a correction beside them."""
    recipe = make(
        {"bits_per_weight": 5, "bits": [2, 8], "correction_ranks": [4]},
        correct={"method": "after"},
        decompose=None,
    )
    record = run(recipe, quiet)
    assert 8 * layer_bytes(open_store(recipe)) / WEIGHTS <= 5
    assert {layer.form for layer in record.layers} <= {"dense", "correction"}
    assert record.warnings == ()


def test_running_again_compresses_nothing(make: Make, compressed: list[str]) -> None:
    recipe = make({"bits_per_weight": 4})
    first = run(recipe, quiet)
    count, before = len(compressed), hashes(Path(recipe.output) / STORE)
    assert count == 7 * BLOCKS
    again = run(recipe, quiet)
    assert len(compressed) == count
    assert hashes(Path(recipe.output) / STORE) == before
    assert again.layers == first.layers
    prepared, found = prepare_known(recipe)
    assert prepared.plan == open_store(recipe).plan
    assert isinstance(found, BudgetResult)
    assert found.predicted_loss == search(recipe, quiet).predicted_loss


def test_the_recipe_in_the_run_folder_makes_the_same_layers(make: Make, tmp_path: Path) -> None:
    recipe = make({"bits_per_weight": 4})
    run(recipe, quiet)
    again = load_recipe(Path(recipe.output) / "recipe.yaml")
    assert not again.searches
    again = again.model_copy(update={"output": str(tmp_path / "again")})
    run(again, quiet)
    tensors = [
        {
            name: found
            for name, found in hashes(Path(one.output) / STORE / "blocks").items()
            if name.endswith(".safetensors")
        }
        for one in (recipe, again)
    ]
    assert len(tensors[0]) == BLOCKS
    assert tensors[0] == tensors[1]


def test_a_new_target_tries_nothing_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(make({"bits_per_weight": 4}), quiet)
    monkeypatch.setattr("asvd_q.budget.solving.sweep", None)
    sizes = [
        search(make(target), quiet).choice.layer_bytes  # type: ignore[union-attr]
        for target in ({"bits_per_weight": 3}, {"bits_per_weight": 6}, {"max_loss_increase": 1e-4})
    ]
    assert sizes[0] < sizes[1] < sizes[2]


def measured_loss(recipe: Recipe, replaced: Any = None) -> float:
    """Mean next-token loss on the calibration tokens of the plain model with layers replaced."""
    windows = read_tokens(prepare(recipe)).calibration
    assert windows is not None
    model = plain_model(Path(recipe.model.path))
    for layer in replaced.plan if replaced is not None else ():
        parts = replaced.replacement(layer.name) or {}
        if parts:
            product = parts["weight"] if "weight" in parts else parts["A"] @ parts["B"]
            model.get_submodule(layer.name).weight.data = product
    with torch.no_grad():
        logits = model(windows, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).double(), windows[:, 1:].flatten()
    )
    return float(losses)


class Replacements:
    """The matrices of a store, by layer."""

    def __init__(self, store: Store) -> None:
        self.plan = store.plan
        self._store = store

    def replacement(self, name: str) -> Any:
        return self._store.layer(name).replacement()


@pytest.mark.parametrize("as_number", [False, True])
def test_a_perplexity_is_met_as_measured(
    as_number: bool, make: Make, compressed: list[str]
) -> None:
    dense = measured_loss(make({"bits_per_weight": 4}))
    target: float | str = math.exp(dense) * 1.03 if as_number else "+3 %"
    recipe = make({"perplexity": target})
    record = run(recipe, quiet)
    loss = measured_loss(recipe, Replacements(open_store(recipe))) - dense
    assert loss <= math.log(1.03) + 1e-6
    rounds = json.loads((Path(recipe.output) / ROUNDS).read_text())
    (known,) = rounds["dense"].values()
    assert known == pytest.approx(dense, rel=1e-5)
    assert rounds["losses"][record.store_key] - known == pytest.approx(loss, abs=1e-5)
    assert 1 <= len(rounds["losses"]) <= 6
    # Of all models that were made and hold, none is smaller.
    assert record.layer_bytes.after < 32 / 8 * WEIGHTS
    count, before = len(compressed), hashes(Path(recipe.output))
    again = run(recipe, quiet)
    assert len(compressed) == count
    assert again.store_key == record.store_key
    after = hashes(Path(recipe.output))
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {"run.json", "log.txt", "report.html", "report.md"}


def test_a_perplexity_is_of_the_text_that_it_is_measured_on(
    make: Make, inputs: dict[str, Any]
) -> None:
    """What the dense model has on other tokens is not taken for it."""
    search(make({"perplexity": 1e9}), quiet)
    other = inputs["calibration"] | {"samples": 2}
    recipe = make({"perplexity": 1e9}, calibration=other)
    with pytest.raises(RecipeError, match="run `asvd-q search` on it first"):
        prepare_known(recipe)
    search(recipe, quiet)
    prepare_known(recipe)
    rounds = json.loads((Path(recipe.output) / ROUNDS).read_text())
    assert len(set(rounds["dense"].values())) == 2
    assert measured_loss(recipe) == pytest.approx([*rounds["dense"].values()][1], rel=1e-5)


def test_a_perplexity_that_the_dense_model_does_not_have(make: Make) -> None:
    with pytest.raises(RankError, match=r"the dense model has \d+\.\d+ on the calibration tokens"):
        run(make({"perplexity": 1.5}), quiet)


def test_the_bytes_of_onnx(make: Make) -> None:
    limit = OTHER_BYTES + 7_000
    target = {"size": f"{limit} B", "format": "onnx"}
    export = [{"format": "onnx", "accuracy_level": 0}]
    recipe = make(target, export=export)
    record = run(recipe, quiet)
    stored = sum(OnnxExporter().stored_bytes(one.as_plan()) for one in record.layers)
    assert limit - 500 < stored + OTHER_BYTES <= limit
    bits = {
        spec.bits for one in record.layers for spec in one.quantization.values() if spec is not None
    }
    assert bits <= {2, 4, 8}
    (artefact,) = record.artefacts
    assert artefact.proof.status == "proven"
    found = json.loads((Path(recipe.output) / "search/budget.json").read_text())
    assert (found["format"], found["bytes"]) == ("onnx", stored + OTHER_BYTES)


def test_the_bytes_of_compressed_tensors(make: Make) -> None:
    """Codes of any width, in one file, as many bytes as were counted."""
    pytest.importorskip("compressed_tensors")
    limit = OTHER_BYTES + 6_000
    target = {"size": f"{limit} B", "format": "compressed-tensors", "bits": [3, 5, 8]}
    recipe = make(target, correct={}, export=[{"format": "compressed-tensors"}])
    record = run(recipe, quiet)
    (artefact,) = record.artefacts
    assert artefact.proof.status == "proven"
    tensors = load_file(Path(recipe.output) / artefact.folder / "model.safetensors")
    stored = sum(tensor.nbytes for tensor in tensors.values())
    assert limit - 500 < stored <= limit
    specs = [spec for one in record.layers for spec in one.quantization.values() if spec]
    assert len({spec.bits for spec in specs}) > 1
