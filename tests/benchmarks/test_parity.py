"""The parity benchmark: its arithmetic, what becomes of failures, the whole on a small model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import _artefacts, _loaders, parity
from benchmarks._artefacts import CASES, Artefact, Failure
from benchmarks._families import FAMILIES, random_tokens, save_family
from tests.support import WREN, tiny_llama


def _counting(ids: Any, cache: Any) -> tuple[Any, Any]:
    """A model that says (sum of all tokens so far) mod 7; its cache is the sum."""
    sums = ids.cumsum(1) + (0 if cache is None else cache)
    return np.eye(7, dtype=np.float32)[sums % 7], sums[:, -1:]


def test_greedy_tokens_go_on_from_the_prompt_through_the_cache() -> None:
    windows = np.arange(3 * 40).reshape(3, 40)
    found = _loaders.greedy(_counting, windows)
    assert found.shape == (3, _loaders.GENERATED)
    for row, window in zip(found, windows, strict=True):
        tokens = list(window[: _loaders.PROMPT])
        for token in row:
            assert token == sum(tokens) % 7
            tokens.append(token)


def test_numbers_of_a_row() -> None:
    logits = np.log(np.array([[[0.5, 0.5], [0.75, 0.25]]], np.float32))
    off = np.log(np.array([[[0.25, 0.75], [0.75, 0.25]]], np.float32))
    common = {
        "load_seconds": 1.5,
        "first_load_seconds": 2.5,
        "peak_memory_bytes": 7,
        "memory_before_bytes": 5,
        "layers": "{}",
    }
    reference = {"logits": logits, "generated": np.array([[1, 2, 3, 4], [1, 2, 3, 4]])}
    found = common | {"logits": off, "generated": np.array([[1, 2, 3, 4], [1, 9, 3, 9]])}
    row = parity._compared(found, reference)
    assert row["kl"] == pytest.approx((0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 2)
    assert row["relative_error"] == pytest.approx(
        np.linalg.norm(off - logits) / np.linalg.norm(logits)
    )
    assert row["agreement"] == 0.5
    assert row["greedy_before"] == (4 + 1) / 2
    assert row["greedy_equal"] == 6 / 8
    assert row["peak_memory_bytes"] == 7


def test_a_failure_of_any_kind_becomes_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"no model")
    artefact = Artefact("m", "ASVD", "onnx", broken, tmp_path, 8, 9, ("onnxruntime", "peft"))
    monkeypatch.setitem(_artefacts._PACKAGES, "peft", ("no_such",))
    made = [Failure("m", "ASVD", "gptq", "cannot be held"), artefact]
    rows = list(parity._opened(made, random_tokens(1, 40, seed=0), tmp_path))
    assert [(row.format, row.loader) for row in rows] == [
        ("gptq", None),
        ("onnx", "onnxruntime"),
        ("onnx", "peft"),
    ]
    assert rows[0].failed == "cannot be held"
    assert "model.onnx" in (rows[1].failed or "")
    assert rows[1].bytes == 8
    assert rows[1].kl is None
    assert rows[2].failed == "left out: no_such is not installed"
    table = next(parity._tables(rows, "m", [row.failed or "" for row in rows]))
    assert [row[3] for row in table.rows] == ["note 1", "note 2", "note 3"]


def test_a_process_that_dies_has_its_last_words_in_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "dies.py"
    script.write_text("import sys; sys.exit('out of luck')")
    monkeypatch.setattr(_loaders, "__file__", str(script))
    artefact = Artefact("m", "ASVD", "onnx", tmp_path, tmp_path, 8, 9, ("onnxruntime",))
    (row,) = parity._opened([artefact], random_tokens(1, 40, seed=0), tmp_path)
    assert row.failed == "exit code 1: out of luck"


def test_a_loader_without_our_name_cannot_import_this_package(tmp_path: Path) -> None:
    program = (
        f"import runpy\nrunpy.run_path({_loaders.__file__!r}, run_name='__main__')\nimport asvd_q"
    )
    np.save(tmp_path / "tokens.npy", np.zeros((1, 40), np.int64))
    ended = subprocess.run(
        [sys.executable, "-c", program, "onnxruntime", str(tmp_path / "tokens.npy")],
        capture_output=True,
        text=True,
    )
    assert "ModuleNotFoundError: import of asvd_q halted" in ended.stderr


@pytest.mark.parametrize("factors", [True, False])
def test_every_case_has_loaders_for_each_format(factors: bool) -> None:
    for case in CASES.values():
        for name, options in case.formats.items():
            loaders = _artefacts._loaders(name, options, factors=factors)
            assert loaders
            assert set(loaders) <= set(_loaders.LOADERS)
            # Without factors there is nothing of ours to import.
            assert factors or not any(loader.endswith(_loaders.OURS) for loader in loaders)


@pytest.mark.parametrize("name", FAMILIES)
def test_random_models_are_neither_silent_nor_loud(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(save_family(name, tmp_path))
    with torch.no_grad():
        logits = model(random_tokens(2, 40, seed=0)).logits
    assert 0.2 < float(logits.std()) < 5
    assert all(bool(parameter.any()) for parameter in model.parameters())


@pytest.mark.slow
def test_the_whole_on_a_small_model(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, model = tmp_path / "parity.json", place / "wider"
    tiny_llama(model, hidden=128, intermediate=256, vocabulary=8192)  # where a rank of 32 pays
    for part in WREN.glob("tokenizer*"):
        shutil.copy(part, model)
    argv = ["parity", "--model", str(model), "--data", str(place), "--window", "48"]
    argv += ["--calibration", "notes", "--corpora", "notes,lines", "--cases", "ASVD"]
    monkeypatch.setattr("sys.argv", [*argv, "--families", "llama", "--json", str(file)])
    parity.main()
    content = json.loads(file.read_text())
    ran = [row for row in content["rows"] if row["failed"] is None]
    assert {(row["model"], row["format"], row["loader"]) for row in ran} >= {
        (name, *names)
        for name in ("wider", "llama")
        for names in (
            ("transformers", "transformers"),
            ("transformers", "transformers+asvd_q"),
            ("onnx", "onnxruntime"),
        )
    }
    for row in ran:
        assert row["relative_error"] < 1e-5
        assert row["agreement"] == row["greedy_equal"] == 1
        assert row["greedy_before"] == _loaders.GENERATED
        assert row["peak_memory_bytes"] > row["memory_before_bytes"] > 2**24
        if row["format"] == "transformers":
            assert row["bytes"] == row["predicted_bytes"]
    assert "random models of two blocks" in capsys.readouterr().out
