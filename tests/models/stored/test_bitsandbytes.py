"""Checkpoints of bitsandbytes, against what it dequantizes them to."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from asvd_q.errors import ModelError
from asvd_q.models import SourceModel
from tests.models.stored.makers import WEIGHTS, by_bitsandbytes, edit, tiny_gpt2
from tests.support import tiny_llama

LAYER = "model.layers.0.mlp.up_proj"

SETTINGS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "nf4": (torch.float32, {"bnb_4bit_quant_type": "nf4"}),
    "nf4-double": (
        torch.bfloat16,
        {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ),
    "fp4": (torch.bfloat16, {"bnb_4bit_quant_type": "fp4"}),
    "fp4-double": (
        torch.float16,
        {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    ),
    "stored-as-bfloat16": (
        torch.float32,
        {"bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": torch.bfloat16},
    ),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), layers=1)


@pytest.mark.parametrize("kind", SETTINGS)
def test_weights_are_those_that_bitsandbytes_computes(
    kind: str, llama: Path, tmp_path: Path
) -> None:
    dtype, settings = SETTINGS[kind]
    reference = by_bitsandbytes(llama, tmp_path, dtype, load_in_4bit=True, **settings)
    source = SourceModel.open(str(tmp_path))
    assert source.codes is not None
    assert (source.codes.bits, source.codes.layers, len(reference)) == ((4,), 7, 7)
    assert source.dtype == dtype
    for name, weight in reference.items():
        found = source.tensor(f"{name}.weight")
        assert found.dtype == dtype
        assert torch.equal(found, weight), name
    dense = SourceModel.open(str(llama)).tensors
    shapes = {name: info.shape for name, info in source.tensors.items()}
    assert shapes == {name: info.shape for name, info in dense.items()}


def test_eight_bits(llama: Path, tmp_path: Path) -> None:
    reference = by_bitsandbytes(llama, tmp_path, torch.float16, load_in_8bit=True)
    source = SourceModel.open(str(tmp_path))
    assert source.codes is not None
    assert (source.codes.bits, len(reference)) == ((8,), 7)
    assert set(source.tensors) == set(SourceModel.open(str(llama)).tensors)
    for name, weight in reference.items():
        assert torch.equal(source.tensor(f"{name}.weight"), weight), name


def test_layers_that_the_model_keeps_transposed(tmp_path: Path) -> None:
    model = tiny_gpt2(tmp_path / "model")
    reference = by_bitsandbytes(model, tmp_path / "codes", load_in_4bit=True)
    source = SourceModel.open(str(tmp_path / "codes"))
    assert len(reference) == 8
    for name, weight in reference.items():
        assert torch.equal(source.tensor(f"{name}.weight"), weight.T), name
        assert source.tensors[f"{name}.weight"].shape == tuple(weight.T.shape)


@pytest.fixture(scope="module")
def made(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nf4")
    by_bitsandbytes(
        llama,
        folder,
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )
    return folder


STATE = f"{LAYER}.weight.quant_state.bitsandbytes__nf4"
DAMAGE: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "no-absmax": ({f"{LAYER}.weight.absmax": None}, "has no weight.absmax"),
    "no-nested": ({f"{LAYER}.weight.nested_quant_map": None}, "has no weight.nested_quant_map"),
    "no-weight": ({f"{LAYER}.weight": None}, "has no weight to its"),
    "state-no-json": ({STATE: torch.tensor([1, 2, 3], dtype=torch.uint8)}, "quant_state cannot be"),
    "state-empty": ({STATE: torch.tensor(list(b"{}"), dtype=torch.uint8)}, "quant_state cannot be"),
    "short": (
        {f"{LAYER}.weight": torch.zeros(10, 1, dtype=torch.uint8)},
        r"not those of a matrix of \(96, 64\) in blocks of 64",
    ),
    "scales-in-floats": (
        {f"{LAYER}.weight.absmax": torch.zeros(96)},
        "not those of a matrix",
    ),
    "few-scales": (
        {f"{LAYER}.weight.absmax": torch.zeros(10, dtype=torch.uint8)},
        "not those of a matrix",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_missing_or_does_not_fit_is_named(kind: str, made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "copy")
    changes, message = DAMAGE[kind]
    edit(folder, changes)
    with pytest.raises(ModelError, match=message) as caught:
        SourceModel.open(str(folder))
    assert str(caught.value).startswith(f"{folder / WEIGHTS}: {LAYER}")
    assert "\n" not in str(caught.value)
