"""Whole runs in which embedding and head are choices of the budget."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from asvd_q.pipeline import run
from tests.budget_runs.given import WEIGHTS, Make, layer_bytes, open_store
from tests.compression.job import quiet
from tests.support import WREN, tiny_llama

NORMS = 4 * 5 * 32
VOCABULARY = 8192 * 32


def tied_model(folder: Path) -> str:
    """As the other model of these tests is, with one matrix for embedding and head."""
    model = tiny_llama(
        folder / "tied", layers=2, hidden=32, intermediate=48, vocabulary=8192, tied=True
    )
    for file in WREN.glob("tokenizer*"):
        shutil.copy(file, model)
    return str(model)


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_size_that_floats_alone_would_not_leave_room_in(
    tied: bool, hybrid: bool, make: Make, inputs: dict[str, Any], tmp_path: Path
) -> None:
    matrices = 1 if tied else 2
    limit = NORMS + (WEIGHTS + matrices * VOCABULARY) * 5 // 8
    sections = {"model": {"path": tied_model(tmp_path)}} if tied else {}
    recipe = make(
        {"size": f"{limit} B", "hybrid": hybrid},
        quantize={"method": "gptq", "embedding": {}, "head": {}},
        calibration={**inputs["calibration"], "sequential": True},
        decompose=None,
        **sections,
    )
    record = run(recipe, quiet)
    assert record.warnings == ()
    assert record.total_bytes.before == NORMS + 4 * (WEIGHTS + matrices * VOCABULARY)
    assert 0.9 * limit < record.total_bytes.after <= limit
    store = open_store(recipe)
    assert layer_bytes(store) + NORMS == record.total_bytes.after
    outside = {layer.name: layer for layer in store.finished_plan if layer.block is None}
    assert list(outside) == ["model.embed_tokens", *([] if tied else ["lm_head"])]
    specs = [layer.quantization["weight"] for layer in outside.values()]
    assert all(spec is not None for spec in specs)
    expected = ["gptq"] if tied else ["rtn", "gptq"]
    assert [spec.method for spec in specs if spec is not None] == expected
    found = json.loads((Path(recipe.output) / "search/budget.json").read_text())
    assert found["bytes"] == record.total_bytes.after
    assert set(outside) < set(found["layers"])


def test_bits_per_weight_are_of_all_that_is_chosen(make: Make) -> None:
    recipe = make({"bits_per_weight": 6}, quantize={"method": "rtn", "head": {}}, decompose=None)
    record = run(recipe, quiet)
    assert record.parameters.before == WEIGHTS + VOCABULARY
    assert 5.5 < 8 * record.layer_bytes.after / (WEIGHTS + VOCABULARY) <= 6
    assert record.total_bytes.after == record.layer_bytes.after + NORMS + 4 * VOCABULARY
