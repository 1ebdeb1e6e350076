"""Sizes at the time of the plan, of graphs whose weights are small beside their nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from asvd_q.models.inputs import shared_inputs
from asvd_q.models.skeleton import build_skeleton
from asvd_q.opening import open_run_store
from asvd_q.pipeline import run
from asvd_q.recipe import load_recipe
from asvd_q_exporters.onnx.sharing import same_factors
from tests.exporters.onnx.conftest import Export
from tests.exporters.sizes import assert_sizes
from tests.support import tiny_recipe


@pytest.mark.parametrize("name", ["mixed", "tied", "nf4_export", "standard"])
def test_predicted_files_are_those_on_disk(name: str, request: pytest.FixtureRequest) -> None:
    made: Export = request.getfixturevalue(name)
    assert_sizes(made.exporter, made.store, made.folder)


@pytest.mark.slow
def test_a_run_keeps_what_was_predicted_beside_what_came(tmp_path: Path) -> None:
    """The plan knows which corrections have one B."""
    recipe = tmp_path / "recipe.yaml"
    sections = tiny_recipe(tmp_path, blocks=2) | {
        "output": str(tmp_path / "run"),
        "quantize": {"bits": 4, "group_size": 16},
        "correct": {"method": "inside", "ranks": {"*_proj": 8, "k_proj": 4}},
        "export": [{"format": "onnx", "accuracy_level": 0}],
    }
    recipe.write_text(yaml.safe_dump(sections), encoding="utf-8")
    record = run(load_recipe(recipe), lambda stage, done, total: None)
    (artefact,) = record.artefacts
    assert artefact.weight_bytes == (tmp_path / "run/artefacts/onnx/model.onnx").stat().st_size
    assert abs(artefact.predicted.folder / artefact.bytes - 1) < 0.01
    assert abs(artefact.predicted.weights / artefact.weight_bytes - 1) < 0.01
    store = open_run_store(tmp_path / "run")
    assert store.plan.same_factors() == same_factors(store)
    assert len(same_factors(store)) == 4  # v with q, and up with gate, in two blocks


def test_layers_that_share_an_input_are_found_without_weights(mixed: Export) -> None:
    groups = shared_inputs(build_skeleton(mixed.store.source))
    assert [tuple(name.rsplit(".", 1)[-1] for name in group) for group in groups] == [
        ("q_proj", "k_proj", "v_proj"),
        ("gate_proj", "up_proj"),
    ] * 2
