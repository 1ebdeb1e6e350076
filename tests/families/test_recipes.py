"""Every recipe on every family, as a user would run it: from YAML to proven artefacts."""

from __future__ import annotations

from pathlib import Path

import pytest

from asvd_q.pipeline import run
from asvd_q.recipe import load_recipe
from asvd_q.report.run import ArtefactRecord, RunRecord
from tests.families.columns import COLUMNS, FACTORS_ALONE, Column, export_section, write_recipe
from tests.families.models import MODELS, save_model
from tests.models.families import FAMILIES

SLOW = {"onnx"}
"""Formats that take seconds to write."""

VARIED = ("gemma2", "phi3", "gpt2")
"""Families that differ most: capped scores, fused projections, transposed weights."""

GRAPHS = [
    (family, name)
    for name, families in {
        "asvd": FAMILIES,
        "asvd-gptq": MODELS,
        "asvd-nf4": VARIED,
        "correct": VARIED,
    }.items()
    for family in families
]
"""Family and column of each graph: what a layer is made of there does not depend on the family."""

LAYERS = {"phi3": 8, "phi3-longrope": 8, "gpt2": 8, "gpt-neox": 8, "opt": 12, "opt-350m": 12}
"""Linear layers of two blocks, where they are not those of Llama."""


@pytest.fixture(scope="module", params=MODELS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp(family) / "model", *MODELS[family])


@pytest.mark.parametrize(
    "name", [name for name, column in COLUMNS.items() if set(column.formats) - SLOW]
)
def test_a_recipe_ends_in_proven_artefacts(
    family: str, model: Path, name: str, tmp_path: Path
) -> None:
    _carry_out(family, model, name, tmp_path, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), GRAPHS, indirect=["family"])
def test_a_recipe_ends_in_a_proven_graph(
    family: str, model: Path, name: str, tmp_path: Path
) -> None:
    _carry_out(family, model, name, tmp_path, slow=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", VARIED[-1:], indirect=True)
def test_a_budget_is_met(family: str, model: Path, tmp_path: Path) -> None:
    sections = {
        "decompose": {"refit": True},
        "correct": {},
        "quantize": {"method": "gptq", "refit": True},
        "budget": {"bits_per_weight": 4.5},
    }
    column = Column(sections, ("transformers",))
    recipe = load_recipe(
        write_recipe(tmp_path, model, column, export=[export_section(column, "transformers")]),
        ["calibration.sequential=true"],
    )
    record = run(recipe, _silent)
    bits = 8 * record.layer_bytes.after / record.parameters.before
    assert 4 < bits <= 4.5
    assert record.artefacts[0].proof.status == "proven"


def _carry_out(family: str, model: Path, name: str, folder: Path, *, slow: bool) -> None:
    column = COLUMNS[name]
    wanted = [
        known
        for known in column.formats
        if (known in SLOW) is slow and (name != "rtn" or (family, known) not in FACTORS_ALONE)
    ]
    exports = [export_section(column, known) for known in wanted]
    record = run(load_recipe(write_recipe(folder, model, column, export=exports)), _silent)
    _check_layers(record, family, name)
    assert [artefact.format for artefact in record.artefacts] == wanted
    for artefact in record.artefacts:
        _check_proof(artefact, record)


def _check_layers(record: RunRecord, family: str, name: str) -> None:
    assert len(record.layers) == LAYERS.get(family, 14)
    assert [line for line in record.warnings if not line.startswith("gptq: on a GPU")] == []
    form = {"rtn": "dense", "nf4": "dense", "correct": "correction"}.get(name, "factors")
    assert {layer.form for layer in record.layers} == {form}
    for layer in record.layers:
        assert max(layer.errors.values()) < 1
        codes = [slot for slot, spec in layer.quantization.items() if spec is not None]
        assert codes == {
            "asvd": [],
            "rtn": ["weight"],
            "nf4": ["weight"],
            "correct": ["weight"],
        }.get(name, ["B", "A"])


def _check_proof(artefact: ArtefactRecord, record: RunRecord) -> None:
    assert artefact.proof.status == "proven"
    assert artefact.proof.layers == len(record.layers)
    assert artefact.proof.decode_steps == 8
    if artefact.format == "onnx":  # at this accuracy level nothing is rounded
        assert artefact.proof.relative_error is not None
        assert artefact.proof.relative_error < 1e-5


def _silent(stage: str, done: int, total: int) -> None:
    pass
