"""Every command as a user calls it, on the bundled model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asvd_q import __version__
from asvd_q.recipe import json_schema
from tests.cli.runner import EVALUATE, command, write_recipe
from tests.support import WREN

Capture = pytest.CaptureFixture[str]


def test_imports_are_cheap() -> None:
    code = (
        "import sys, asvd_q, asvd_q.cli, asvd_q.recipe, asvd_q.artefact;"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_validating_needs_no_torch(tmp_path: Path) -> None:
    budget = {"format": "compressed-tensors", "bits_per_weight": 4}
    sections = {"budget": budget, "quantize": {}, "decompose": {}}
    recipe = write_recipe(tmp_path, **sections, export=[{"format": "compressed-tensors"}])
    code = (
        "import sys; from asvd_q.cli import app; app(sys.argv[1:], standalone_mode=False);"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code, "validate", str(recipe)], check=True)


def test_help_and_version(capsys: Capture) -> None:
    assert "export" in command(capsys, "--help").out
    assert command(capsys, "--version").out.strip() == f"asvd-q {__version__}"


def test_schema_is_the_recipes(capsys: Capture) -> None:
    assert json.loads(command(capsys, "schema").out) == json_schema()


def test_validate(tmp_path: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path)
    assert command(capsys, "validate", recipe).out == f"{recipe}: valid\n"
    assert command(capsys, "validate", recipe, "--set", "decompose.alpha=0.4").code == 0


def test_plan_changes_nothing(tmp_path: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path, quantize={"bits": 4, "group_size": 32})
    ended = command(capsys, "plan", recipe)
    assert ended.code == 0
    assert "model.layers.5.mlp.down_proj" in ended.out
    for exporter in ("onnx", "gptq", "transformers"):
        assert exporter in ended.out
    assert not (tmp_path / "run").exists()


def test_plan_as_json_agrees_with_the_run(
    tmp_path: Path, capsys: Capture, run_folder: Path
) -> None:
    recipe = write_recipe(tmp_path, quantize={"bits": 8, "group_size": 32})
    content = json.loads(command(capsys, "plan", recipe, "--json").out)
    record = json.loads((run_folder / "run.json").read_text())
    assert content["predicted_bytes"] == record["total_bytes"]["after"]
    assert [layer["predicted_bytes"] for layer in content["plan"]["layers"]] == [
        layer["bytes_after"] for layer in record["layers"]
    ]
    refused = {entry["exporter"]: entry["refusal"] for entry in content["exporters"]}
    assert refused["onnx"] is None
    assert refused["gptq"] is None
    assert "transformers" in refused
    assert "model.layers.0.self_attn.q_proj" in refused["transformers"]


def test_run_prints_tables(tmp_path: Path, capsys: Capture) -> None:
    ended = command(capsys, "run", write_recipe(tmp_path, evaluate=EVALUATE))
    assert ended.code == 0
    assert "python-docs (test)" in ended.out
    assert "layers: kept 0.6" in ended.out
    assert "compressing: 6/6" in ended.err


def test_run_as_json_is_the_record(tmp_path: Path, capsys: Capture) -> None:
    ended = command(capsys, "run", write_recipe(tmp_path), "--json")
    assert json.loads(ended.out) == json.loads((tmp_path / "run/run.json").read_text())


@pytest.mark.parametrize("path", [".", "store", "artefacts/onnx"])
def test_inspect(run_folder: Path, capsys: Capture, path: str) -> None:
    ended = command(capsys, "inspect", run_folder / path)
    rows = [line for line in ended.out.splitlines() if line.startswith("model.layers.")]
    assert len(rows) == 42
    assert all("factors" in row for row in rows)
    content = json.loads(command(capsys, "inspect", run_folder / path, "--json").out)
    record = json.loads((run_folder / "run.json").read_text())
    assert content["layers"] == record["layers"]


def test_generate_agrees_with_transformers(run_folder: Path, capsys: Capture) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt = "The string method returns"
    arguments = ("--prompt", prompt, "--max-new-tokens", "8")
    ended = command(capsys, "generate", WREN / "absent", *arguments)
    assert ended.code == 2
    in_ort = command(capsys, "generate", run_folder / "artefacts/onnx", *arguments).out
    in_torch = command(capsys, "generate", run_folder, *arguments).out
    assert in_ort == in_torch
    assert in_ort.startswith(prompt)
    other = "Once upon a time there was a little bird"
    both = command(capsys, "generate", run_folder / "artefacts/onnx", *arguments, "--prompt", other)
    assert both.out.startswith(f"{in_ort}\n{other}")
    dense = command(capsys, "generate", WREN, *arguments).out
    tokenizer = AutoTokenizer.from_pretrained(WREN)
    model = AutoModelForCausalLM.from_pretrained(WREN, dtype=torch.float32)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert dense.strip() == tokenizer.decode(expected[0], skip_special_tokens=True).strip()


@pytest.mark.slow
def test_export_another_format(run_folder: Path, capsys: Capture) -> None:
    before = (run_folder / "store/store.json").stat().st_mtime_ns
    arguments = ("--to", "onnx", "--name", "onnx-16", "--option", "dtype=float16")
    ended = command(capsys, "export", run_folder, *arguments)
    assert ended.code == 0, ended.err
    assert "proven" in ended.out
    assert (run_folder / "artefacts/onnx-16/model.onnx").is_file()
    assert (run_folder / "store/store.json").stat().st_mtime_ns == before
    names = [
        entry["name"] for entry in json.loads((run_folder / "run.json").read_text())["artefacts"]
    ]
    assert names == ["onnx", "onnx-16"]


def test_export_refuses_by_name(run_folder: Path, capsys: Capture) -> None:
    message = command(capsys, "export", run_folder, "--to", "transformers").message
    assert "model.layers.0.self_attn.q_proj" in message
    assert not (run_folder / "artefacts/transformers").exists()


def test_interrupting_a_run_says_how_to_go_on(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("asvd_q.pipeline.run", interrupted)
    ended = command(capsys, "run", write_recipe(tmp_path))
    assert ended.code == 130
    assert "goes on from the last finished block" in ended.err


def test_search_prints_ranks_and_findings(tmp_path: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path, decompose={"rank_multiple": 8}, search={"kept_ratio": 0.8})
    ended = command(capsys, "search", recipe)
    assert ended.code == 0, ended.err
    rows = [line for line in ended.out.splitlines() if line.startswith("model.layers.")]
    assert len(rows) == 42
    assert "kept of MLP layers" in ended.out
    content = json.loads(command(capsys, "search", recipe, "--json").out)
    assert len(content["layers"]) == 42
    assert not (tmp_path / "run/store").exists()
