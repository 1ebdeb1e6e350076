"""Every kind of bad input: one clear line, exit code 2, and no half-written artefact."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.runner import command, write_recipe
from tests.support import WREN

Capture = pytest.CaptureFixture[str]


def _copy_of_wren(folder: Path) -> Path:
    model = folder / "model"
    shutil.copytree(WREN, model)
    return model


def _nothing_written(folder: Path) -> bool:
    run = folder / "run"
    return not list(run.rglob("*.safetensors")) and not (run / "artefacts").exists()


def test_unknown_key(tmp_path: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path, decompose={"kept_ratio": 0.7, "scalling": "rms"})
    message = command(capsys, "run", recipe).message
    assert "decompose.scalling" in message
    assert "did you mean 'scaling'" in message


def test_wrong_type(tmp_path: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path, decompose={"kept_ratio": "most"})
    message = command(capsys, "validate", recipe).message
    assert "decompose.kept_ratio" in message
    assert "most" in message
    assert "a number" in message


def test_missing_recipe(tmp_path: Path, capsys: Capture) -> None:
    assert "nowhere.yaml" in command(capsys, "run", tmp_path / "nowhere.yaml").message


def test_missing_model_folder(tmp_path: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path, model={"path": str(tmp_path / "absent")})
    message = command(capsys, "run", recipe).message
    assert "model.path" in message
    assert "absent" in message


def test_folder_without_weights(tmp_path: Path, capsys: Capture) -> None:
    model = _copy_of_wren(tmp_path)
    (model / "model.safetensors").unlink()
    message = command(capsys, "run", write_recipe(tmp_path, model={"path": str(model)})).message
    assert "no weights" in message
    assert _nothing_written(tmp_path)


def test_pickled_weights_are_never_loaded(tmp_path: Path, capsys: Capture) -> None:
    model = _copy_of_wren(tmp_path)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    message = command(capsys, "run", write_recipe(tmp_path, model={"path": str(model)})).message
    assert "pickle" in message


def test_truncated_safetensors(tmp_path: Path, capsys: Capture) -> None:
    model = _copy_of_wren(tmp_path)
    file = model / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1000)
    message = command(capsys, "run", write_recipe(tmp_path, model={"path": str(model)})).message
    assert "truncated" in message
    assert "model.safetensors" in message
    assert _nothing_written(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite(tmp_path: Path, capsys: Capture, value: float) -> None:
    model = _copy_of_wren(tmp_path)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.weight"][5, 7] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    message = command(capsys, "run", write_recipe(tmp_path, model={"path": str(model)})).message
    assert "model.layers.3.mlp.up_proj" in message
    assert "NaN or infinity" in message
    assert _nothing_written(tmp_path)


def test_empty_corpus(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty.txt").write_text("  \n", encoding="utf-8")
    recipe = write_recipe(tmp_path, calibration={"corpus": str(tmp_path / "empty.txt")})
    message = command(capsys, "run", recipe).message
    assert "empty" in message
    assert _nothing_written(tmp_path)


def test_corpus_shorter_than_a_window(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "short.txt").write_text("Only a few words.", encoding="utf-8")
    recipe = write_recipe(
        tmp_path, calibration={"corpus": str(tmp_path / "short.txt"), "window": 64}
    )
    message = command(capsys, "run", recipe).message
    assert "short" in message
    assert "64" in message


def test_rank_above_the_smaller_side(tmp_path: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path, decompose={"ranks": {"*.k_proj": 129}})
    message = command(capsys, "run", recipe).message
    assert "129" in message
    assert "model.layers.0.self_attn.k_proj" in message
    assert "128" in message


def test_rank_for_no_layer(tmp_path: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path, decompose={"ranks": {"*.qq_proj": 32}})
    assert "*.qq_proj matches no layer" in command(capsys, "plan", recipe).message


def test_group_size_that_the_runtime_cannot_take(tmp_path: Path, capsys: Capture) -> None:
    recipe = write_recipe(
        tmp_path, quantize={"bits": 4, "group_size": 48}, export=[{"format": "onnx"}]
    )
    message = command(capsys, "run", recipe).message
    assert "onnx" in message
    assert "48" in message
    assert "model.layers.0" in message
    assert _nothing_written(tmp_path)


def test_bit_width_that_the_exporter_cannot_hold(tmp_path: Path, capsys: Capture) -> None:
    recipe = write_recipe(
        tmp_path, quantize={"bits": 5, "group_size": 32}, export=[{"format": "gptq"}]
    )
    message = command(capsys, "run", recipe).message
    assert "gptq" in message
    assert "5" in message
    assert _nothing_written(tmp_path)


def test_unknown_export_format(tmp_path: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path, export=[{"format": "onnxx"}])
    message = command(capsys, "run", recipe).message
    assert "onnxx" in message
    assert "gptq, onnx, peft, transformers" in message


def test_unknown_export_option(tmp_path: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path, export=[{"format": "onnx", "accuracy": 4}])
    message = command(capsys, "validate", recipe).message
    assert "export.0.accuracy" in message
    assert "accuracy_level" in message


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--name", "a b"), "name is 'a b'"),
        (("--option", "bits"), "--option bits: write KEY=VALUE"),
        (("--option", "opset=[21]"), "'opset' must be a plain value"),
        (("--option", "format=gptq"), "--option format=gptq: this is no option"),
    ],
)
def test_export_arguments(
    arguments: tuple[str, str], says: str, tmp_path: Path, capsys: Capture
) -> None:
    message = command(capsys, "export", tmp_path, "--to", "onnx", *arguments).message
    assert says in message
    assert not list(tmp_path.iterdir())


def test_an_output_file_that_is_a_folder(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "run" / "log.txt").mkdir(parents=True)
    message = command(capsys, "run", write_recipe(tmp_path)).message
    assert str(tmp_path / "run" / "log.txt") in message
    assert _nothing_written(tmp_path)


def test_an_output_folder_that_is_a_model(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}", encoding="utf-8")
    message = command(capsys, "run", write_recipe(tmp_path)).message
    assert f"{tmp_path / 'run'} holds a model (config.json)" in message
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize("section", ["calibration", "evaluate"])
def test_windows_longer_than_the_context(
    section: str, verb: str, tmp_path: Path, capsys: Capture
) -> None:
    changed = {section: {"corpora": ["python-docs"], "window": 1025}}
    message = command(capsys, verb, write_recipe(tmp_path, **changed)).message
    assert f"{section}.window is 1025, and the model's context is 1024 tokens" in message
    assert _nothing_written(tmp_path)


def test_unwritable_output(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    recipe = write_recipe(tmp_path, output=str(tmp_path / "file" / "run"))
    message = command(capsys, "run", recipe).message
    assert "cannot write" in message
    assert str(tmp_path / "file" / "run") in message


def test_too_little_disk(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1 << 20))
    message = command(capsys, "run", write_recipe(tmp_path)).message
    assert "free" in message
    assert _nothing_written(tmp_path)


def test_no_gpu(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU" in command(capsys, "run", write_recipe(tmp_path, device="cuda")).message


def test_too_little_memory(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr("asvd_q.compressing.compress", exhausted)
    assert "hidden_states: disk" in command(capsys, "run", write_recipe(tmp_path)).message


@pytest.mark.parametrize("verb", ["inspect", "evaluate"])
def test_a_folder_that_is_none_of_ours(tmp_path: Path, capsys: Capture, verb: str) -> None:
    assert str(tmp_path) in command(capsys, verb, tmp_path).message
    assert "does not exist" in command(capsys, verb, tmp_path / "absent").message


def test_damaged_artefact(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "asvd_q.json").write_text('{"version": 1, "asvd', encoding="utf-8")
    assert "asvd_q.json is damaged" in command(capsys, "inspect", tmp_path).message


def test_store_of_another_recipe(tmp_path: Path, capsys: Capture) -> None:
    assert command(capsys, "run", write_recipe(tmp_path)).code == 0
    other = write_recipe(tmp_path, decompose={"kept_ratio": 0.5})
    message = command(capsys, "run", other).message
    assert "another recipe" in message
    assert "--fresh" in message
    assert command(capsys, "run", other, "--fresh").code == 0


def test_missing_extra(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(
        tmp_path,
        calibration=None,
        decompose=None,
        quantize={"bits": 4, "group_size": 32},
        export=[{"format": "gptq"}],
    )
    monkeypatch.setitem(sys.modules, "gptqmodel", None)
    ended = command(capsys, "run", recipe)
    assert ended.code == 0
    assert "not run" in ended.out
    message = command(capsys, "generate", tmp_path / "run/artefacts/gptq", "--prompt", "A").message
    assert "pip install 'asvd-q[gptq]'" in message


@pytest.mark.parametrize("flags", [(), ("--fresh",)])
def test_a_folder_with_somebody_elses_recipe(
    tmp_path: Path, capsys: Capture, flags: tuple[str, ...]
) -> None:
    recipe = write_recipe(tmp_path, output=str(tmp_path))
    before = recipe.read_text()
    message = command(capsys, "run", recipe, *flags).message
    assert "would be overwritten" in message
    assert recipe.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("decompose.exclude", {"decompose": {"kept_ratio": 0.7, "exclude": ["q_prj"]}}),
        ("decompose.include", {"decompose": {"kept_ratio": 0.7, "include": ["q_prj"]}}),
        ("quantize.exclude", {"quantize": {"exclude": ["q_prj"]}}),
        ("quantize.overrides", {"quantize": {"overrides": [{"match": "q_prj", "bits": 4}]}}),
    ],
)
def test_a_pattern_that_matches_nothing(
    tmp_path: Path, capsys: Capture, key: str, sections: dict[str, object]
) -> None:
    message = command(capsys, "plan", write_recipe(tmp_path, **sections)).message
    assert f"{key}: 'q_prj' matches no layer" in message
    assert "did you mean 'q_proj'" in message


def test_a_tied_head(tmp_path: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path, decompose={"kept_ratio": 0.7, "lm_head": True})
    assert "decompose.lm_head" in command(capsys, "run", recipe).message


def test_torch_runs_out_of_memory(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*args: object, **kwargs: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr("asvd_q.compressing.compress", exhausted)
    assert "not enough memory" in command(capsys, "run", write_recipe(tmp_path)).message


def test_search_without_a_search_section(tmp_path: Path, capsys: Capture) -> None:
    assert (
        "`search` or `budget` section" in command(capsys, "search", write_recipe(tmp_path)).message
    )


def test_a_bad_corpus_does_not_cost_the_earlier_run(tmp_path: Path, capsys: Capture) -> None:
    assert command(capsys, "run", write_recipe(tmp_path)).code == 0
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    broken = write_recipe(tmp_path, calibration={"corpus": str(tmp_path / "empty.txt")})
    assert "empty" in command(capsys, "run", broken, "--fresh").message
    assert (tmp_path / "run/run.json").is_file()
    assert (tmp_path / "run/store/store.json").is_file()
