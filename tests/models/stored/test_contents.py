"""What is said of folders that are quantized in other ways, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asvd_q.errors import ModelError
from asvd_q.models import SourceModel
from tests.support import tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path, layers=1, hidden=16, intermediate=24)


def say(folder: Path, settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))


@pytest.mark.parametrize("method", ["awq", "fp8", "mxfp4", "hqq"])
def test_another_method_is_named(method: str, folder: Path) -> None:
    say(folder, {"quant_method": method, "bits": 4})
    with pytest.raises(
        ModelError, match=f"quantized with {method}, .* unquantized model"
    ) as caught:
        SourceModel.open(str(folder))
    assert str(folder) in str(caught.value)
    assert "gptq, bitsandbytes, compressed-tensors" in str(caught.value)


def test_settings_that_are_no_mapping(folder: Path) -> None:
    say(folder, "gptq")
    with pytest.raises(ModelError, match="quantization settings are no mapping"):
        SourceModel.open(str(folder))


def test_a_damaged_file_of_settings(folder: Path) -> None:
    (folder / "quantize_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"quantize_config\.json is damaged"):
        SourceModel.open(str(folder))


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes"])
def test_settings_without_codes_change_nothing(method: str, folder: Path) -> None:
    before = SourceModel.open(str(folder))
    say(folder, {"quant_method": method, "bits": 4})
    after = SourceModel.open(str(folder))
    assert after.codes is None
    assert after.tensors == before.tensors
    assert after.identity == before.identity
