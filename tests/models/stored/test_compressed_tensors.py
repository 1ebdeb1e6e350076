"""Packed checkpoints of compressed-tensors, against what it decompresses them to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from asvd_q.errors import ModelError
from asvd_q.models import SourceModel
from tests.models.stored.makers import WEIGHTS, by_compressed_tensors, edit
from tests.support import tiny_llama

pytest.importorskip("compressed_tensors")

LAYER = "model.layers.0.self_attn.o_proj"

SETTINGS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "4": (torch.float16, {"num_bits": 4, "strategy": "group", "group_size": 32}),
    "3-asymmetric": (
        torch.bfloat16,
        {"num_bits": 3, "strategy": "group", "group_size": 32, "symmetric": False},
    ),
    "8-channel": (torch.float32, {"num_bits": 8, "strategy": "channel"}),
    "5-channel-asymmetric": (
        torch.float16,
        {"num_bits": 5, "strategy": "channel", "symmetric": False},
    ),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_weights_are_those_that_compressed_tensors_computes(kind: str, tmp_path: Path) -> None:
    dtype, settings = SETTINGS[kind]
    model = tiny_llama(tmp_path / "model", layers=1)
    reference = by_compressed_tensors(model, tmp_path / "codes", dtype, **settings)
    source = SourceModel.open(str(tmp_path / "codes"))
    assert source.codes is not None
    assert (source.codes.bits, source.codes.layers) == ((settings["num_bits"],), 7)
    assert len(reference) == 7
    for name, weight in reference.items():
        found = source.tensor(f"{name}.weight")
        assert found.dtype == dtype
        assert torch.equal(found, weight), name
    shapes = {name: info.shape for name, info in source.tensors.items()}
    dense = SourceModel.open(str(model)).tensors
    assert shapes == {name: info.shape for name, info in dense.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dtype, settings = SETTINGS["3-asymmetric"]
    by_compressed_tensors(
        tiny_llama(tmp_path / "model", layers=1), tmp_path / "codes", dtype, **settings
    )
    return tmp_path / "codes"


def test_what_is_missing_or_does_not_fit_is_named(folder: Path) -> None:
    edit(folder, {f"{LAYER}.weight_packed": torch.zeros(64, 5, dtype=torch.int32)})
    with pytest.raises(ModelError, match=r"weight_packed \(64, 5\), .* not those of a matrix"):
        SourceModel.open(str(folder))
    edit(folder, {f"{LAYER}.weight_scale": None})
    with pytest.raises(ModelError, match="has no weight_scale to its weight_packed") as caught:
        SourceModel.open(str(folder))
    assert str(caught.value).startswith(f"{folder / WEIGHTS}: {LAYER}")


def test_codes_of_another_width_with_the_same_shape_are_refused(tmp_path: Path) -> None:
    """Four codes of 7 bits to a word, as versions before 0.20 packed them."""
    dtype, settings = SETTINGS["8-channel"]
    by_compressed_tensors(
        tiny_llama(tmp_path / "model", layers=1), tmp_path / "codes", dtype, **settings
    )
    path = tmp_path / "codes" / "config.json"
    path.write_text(path.read_text().replace('"num_bits": 8', '"num_bits": 7'))
    with pytest.raises(ModelError, match="not those of a matrix"):
        SourceModel.open(str(tmp_path / "codes"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config_groups": {}, "format": "float-quantized"}, "in the format float-quantized are"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "with a transform_config are not"),
    ],
)
def test_other_formats_are_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        SourceModel.open(str(folder))
