"""A budget spent on a GPTQ checkpoint whose layers differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from asvd_q.errors import RecipeError
from asvd_q.pipeline import run
from asvd_q.preparation import prepare
from asvd_q.recipe import load_recipe
from asvd_q_exporters.gptq.settings import settings_of
from tests.budget_runs.given import Capture
from tests.cli.runner import command, write_recipe
from tests.compression.job import quiet
from tests.support import WREN, tiny_llama

EXPORT = {"format": "gptq", "loader": "gptqmodel", "dtype": "float32"}


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Any]:
    """A model whose sides the format takes."""
    model = tiny_llama(tmp_path / "model", hidden=64, intermediate=96, vocabulary=8192)
    for file in WREN.glob("tokenizer*"):
        shutil.copy(file, model)
    text = tmp_path / "text.txt"
    text.write_text((WREN / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    return {
        "model": {"path": str(model)},
        "calibration": {"corpus": str(text), "samples": 3, "window": 32, "batch_size": 2},
        "decompose": {"rank_multiple": 32},
        "quantize": {"method": "rtn"},
        "budget": {
            "format": "gptq",
            "bits_per_weight": 5.5,
            "bits": [2, 3, 4, 5, 8],
            "group_sizes": [16, 24, 32],
            "ranks": 1,
        },
        "export": [EXPORT],
    }


def test_layers_of_a_gptq_checkpoint_differ(
    tmp_path: Path, sections: dict[str, Any], capsys: Capture
) -> None:
    path = write_recipe(tmp_path, **sections)
    record = run(load_recipe(path), quiet)
    (artefact,) = record.artefacts
    assert artefact.proof.status == "proven"
    settings = set(settings_of(record.layers).values())
    assert len(settings) > 1
    assert {bits for bits, _, _ in settings} <= {2, 3, 4, 8}
    assert {group for _, group, _ in settings} <= {16, 32}
    found = json.loads((tmp_path / "run/search/budget.json").read_text())
    weights = load_file(tmp_path / "run" / artefact.folder / "model.safetensors")
    assert sum(tensor.nbytes for tensor in weights.values()) == found["bytes"]
    layers = sum(tensor.nbytes for name, tensor in weights.items() if "_proj." in name)
    assert 5.2 < 8 * layers / record.parameters.before <= 5.5
    assert [warning for warning in record.warnings if warning.startswith("gptq: layers have")]
    planned = command(capsys, "plan", path)
    assert planned.code == 0, planned.err
    assert "gptq: layers have settings of their own" in planned.out
    (entry,) = [
        entry
        for entry in json.loads(command(capsys, "plan", path, "--json").out)["exporters"]
        if entry["exporter"] == "gptq"
    ]
    assert entry["refusal"] is None
    assert entry["notes"]


def test_transformers_takes_no_such_budget(tmp_path: Path, sections: dict[str, Any]) -> None:
    recipe = load_recipe(write_recipe(tmp_path, **(sections | {"export": [{"format": "gptq"}]})))
    with pytest.raises(RecipeError, match=r"quantized differently .*loader: gptqmodel"):
        prepare(recipe)


def test_validate_judges_a_budget_by_the_options_of_its_export(
    tmp_path: Path, sections: dict[str, Any], capsys: Capture
) -> None:
    path = write_recipe(tmp_path, **sections)
    assert command(capsys, "validate", path).out == f"{path}: valid\n"
    path = write_recipe(tmp_path, **(sections | {"export": [{"format": "gptq"}]}))
    says = [command(capsys, verb, path).message for verb in ("validate", "run")]
    assert "loader: gptqmodel" in says[0]
    assert says[0] == says[1]
    assert not (tmp_path / "run").exists()
