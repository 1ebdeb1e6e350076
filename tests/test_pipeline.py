"""A recipe from end to end: the same bytes every time, and everything a run leaves behind."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch

from asvd_q.decomposition import identity_scaling, latent_rotation, rotate, spectrum, truncate
from asvd_q.errors import ExportError
from asvd_q.opening import open_run_store
from asvd_q.pipeline import export_run, run
from asvd_q.quantization import TORCH_TYPES
from asvd_q.recipe import ExportSection, load_recipe
from asvd_q.report.run import RunRecord
from tests.cli.runner import write_recipe

_SECTIONS = {
    "quantize": {"bits": 4, "group_size": 32, "clip": "mse"},
    "evaluate": {"corpora": ["python-docs", "python-source"], "window": 64, "windows": 2},
    "export": [{"format": "onnx"}],
}


def _hashes(folder: Path) -> dict[str, str]:
    """Hash of every file of store and artefacts, by its path in the run."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("store", "artefacts")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }


def _silent(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(load_recipe(write_recipe(folder, **_SECTIONS)), _silent)
    return folder / "run"


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    run(load_recipe(write_recipe(tmp_path, **_SECTIONS)), _silent)
    assert _hashes(tmp_path / "run") == _hashes(finished)


@pytest.mark.slow
def test_running_again_changes_no_byte(finished: Path) -> None:
    before = _hashes(finished)
    run(load_recipe(finished.parent / "recipe.yaml"), _silent)
    assert _hashes(finished) == before


def test_what_a_run_folder_holds(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "artefacts",
        "log.txt",
        "recipe.yaml",
        "report.html",
        "report.md",
        "run.json",
        "spectra.json",
        "store",
    }
    record = json.loads((finished / "run.json").read_text())
    stages = {stage["stage"]: stage for stage in record["stages"]}
    assert set(stages) == {"prepare", "compress", "evaluate", "export onnx"}
    assert all(stage["peak_memory_bytes"] > 1 << 20 for stage in stages.values())
    assert {corpus["use"] for corpus in record["corpora"]} == {"calibration", "evaluation"}
    assert record["versions"]["torch"].startswith("2.")
    assert len(record["layers"]) == 42
    assert all(0 < layer["errors"]["decompose"] < 1 for layer in record["layers"])
    assert all(
        layer["errors"]["quantize"] > layer["errors"]["decompose"] / 2 for layer in record["layers"]
    )
    (artefact,) = record["artefacts"]
    assert artefact["proof"]["status"] == "proven"
    assert artefact["proof"]["layers"] == 42
    files = {path.name: path.stat().st_size for path in (finished / "artefacts/onnx").iterdir()}
    assert artefact["bytes"] == sum(files.values()) - files["README.md"]


def test_an_artefact_has_a_card_of_the_run(finished: Path) -> None:
    card = (finished / "artefacts/onnx/README.md").read_text(encoding="utf-8")
    record = RunRecord.read(finished)
    (artefact,) = record.artefacts
    assert f"({artefact.weight_bytes} bytes) |" in card
    for quality in record.quality:
        assert f"| {quality.perplexity:.3f} |" in card
    assert artefact.proof.runtime is not None
    assert f"It ran in {artefact.proof.runtime} on {artefact.proof.tokens} tokens" in card
    assert "license: apache-2.0" in card.split("---")[1]
    assert "source: python-source" in card  # of the recipe


def test_an_onnx_file_and_its_metadata_file_say_the_same(finished: Path) -> None:
    folder = finished / "artefacts" / "onnx"
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    inside = {entry.key: entry.value for entry in model.metadata_props}["asvd_q"]
    beside = json.loads((folder / "asvd_q.json").read_text())
    assert json.loads(inside) == beside
    assert beside["options"]["accuracy_level"] == 4  # a default, written out


def test_the_resolved_recipe_is_the_recipe(finished: Path) -> None:
    assert load_recipe(finished / "recipe.yaml") == load_recipe(finished.parent / "recipe.yaml")


def test_nothing_in_store_or_artefacts_knows_the_place(finished: Path) -> None:
    for path in [*(finished / "store").rglob("*"), *(finished / "artefacts").rglob("*")]:
        if path.is_file():
            assert str(finished.parent).encode() not in path.read_bytes(), path


def test_hidden_states_on_disk_give_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    calibration = {
        "corpus": "python-docs",
        "samples": 2,
        "window": 64,
        "hidden_states": "disk",
    }
    recipe = write_recipe(tmp_path, **(_SECTIONS | {"calibration": calibration, "export": []}))
    run(load_recipe(recipe), _silent)
    found = _hashes(tmp_path / "run")
    assert found == {name: _hashes(finished)[name] for name in found}
    assert not (tmp_path / "run/hidden_states").exists()


@pytest.mark.parametrize("scaling", ["abs_mean", "abs_max", "rms", "fisher", "whitening", "none"])
@pytest.mark.parametrize("sequential", [False, True], ids=["dense-stats", "sequential"])
def test_every_scaling_runs(tmp_path: Path, scaling: str, sequential: bool) -> None:
    section = {"kept_ratio": 0.7, "scaling": scaling}
    calibration = {"corpus": "python-docs", "samples": 2, "window": 64, "sequential": sequential}
    evaluate = {"corpus": "python-docs", "window": 64, "windows": 4}
    recipe = write_recipe(tmp_path, calibration=calibration, decompose=section, evaluate=evaluate)
    record = run(load_recipe(recipe), _silent)
    assert record.parameters.ratio <= 0.7
    assert record.quality[0].perplexity < 4 * record.dense_quality[0].perplexity


def test_rotations_are_drawn_from_the_recipes_seed(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    section = {"ranks": {name: 32}, "scaling": "none", "sigma_split": "both", "rotation": "random"}
    run(load_recipe(write_recipe(tmp_path, seed=3, decompose=section, calibration=None)), _silent)
    store = open_run_store(tmp_path / "run")
    factors = truncate(spectrum(store.source.tensor(f"{name}.weight"), identity_scaling()), 32)
    expected = rotate(factors, latent_rotation(32, "random", 3, name)).A
    found = store.layer(name).weights["A"].dequantize()
    assert torch.equal(found, expected.to(TORCH_TYPES[store.float_type]).float())


def test_dense_export_changes_nothing(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        calibration=None,
        decompose=None,
        evaluate={"corpus": "python-docs", "window": 64, "windows": 2},
        export=[{"format": "transformers"}],
    )
    record = run(load_recipe(recipe), _silent)
    assert record.quality[0].perplexity == record.dense_quality[0].perplexity
    assert record.quality[0].kl == 0
    assert record.artefacts[0].proof.status == "proven"


def test_running_again_keeps_what_export_added(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, calibration=None, decompose=None))
    run(recipe, _silent)
    export_run(tmp_path / "run", ExportSection.model_validate({"format": "transformers"}))
    card = (tmp_path / "run/artefacts/transformers/README.md").read_text(encoding="utf-8")
    assert "the same arg max for 100.00%" in card
    assert "No perplexity had been measured" in card
    record = run(recipe, _silent)
    assert [artefact.name for artefact in record.artefacts] == ["transformers"]


def test_running_again_keeps_the_notes_on_what_it_keeps(tmp_path: Path) -> None:
    codes = {"method": "rtn", "group_size": 32, "symmetric": False}
    path = write_recipe(
        tmp_path, calibration=None, decompose=None, quantize=codes, export=[{"format": "gptq"}]
    )
    recipe = load_recipe(path)
    first = run(recipe, _silent).warnings
    assert any(note.startswith("gptq: asymmetric codes") for note in first)
    others = recipe.model_copy(update={"export": ()})
    assert run(others, _silent).warnings == first
    assert run(recipe, _silent).warnings == first  # said once
    shutil.rmtree(tmp_path / "run/artefacts/gptq")
    assert run(others, _silent).warnings == ()


def test_an_export_that_fails_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ExportError("no")

    monkeypatch.setattr("asvd_q.pipeline.export_store", fail)
    sections = {"evaluate": {"corpus": "python-docs", "window": 64, "windows": 2}}
    recipe = load_recipe(write_recipe(tmp_path, export=[{"format": "transformers"}], **sections))
    with pytest.raises(ExportError):
        run(recipe, _silent)
    record = RunRecord.read(tmp_path / "run")
    assert record.quality[0].tokens == 126
    assert record.artefacts == ()
    assert not (tmp_path / "run/artefacts").exists()


def test_the_log_names_every_stage(finished: Path) -> None:
    log = (finished / "log.txt").read_text()
    for stage in ("checking weights", "compressing", "evaluating on python-docs", "exporting onnx"):
        assert f"INFO {stage}" in log
