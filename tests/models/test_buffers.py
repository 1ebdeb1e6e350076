"""Buffers that a checkpoint holds are read from it, as transformers reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from asvd_q.errors import ModelError
from asvd_q.evaluation.runners import model_runner
from asvd_q.models import SourceModel
from asvd_q.models.buffers import persistent_buffers
from asvd_q.models.skeleton import build_skeleton
from tests.families.models import save_model
from tests.families.test_others import WORKING

_NAME = "model.layers.1.layer_scalar"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", *WORKING["Gemma 4 (text)"], tokenizer=False)


def test_what_is_in_a_state_dictionary() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model.register_buffer("own", torch.ones(1))
    model[0].register_buffer("left_out", torch.ones(1), persistent=False)
    model[0].register_buffer("empty", None)
    names = [name for name, _, _ in persistent_buffers(model)]
    parameters = {name for name, _ in model.named_parameters()}
    assert sorted(names) == sorted(model.state_dict().keys() - parameters)


def test_they_are_those_of_the_files(saved: Path) -> None:
    model = build_skeleton(SourceModel.open(str(saved))).model
    stored = load_file(saved / "model.safetensors")
    assert stored[_NAME] != 1
    assert torch.equal(model.get_buffer(_NAME), stored[_NAME])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_transformers(saved: Path, dtype: torch.dtype) -> None:
    ids = torch.randint(3, 320, (2, 40), generator=torch.Generator().manual_seed(0))
    model = AutoModelForCausalLM.from_pretrained(saved, dtype=dtype).eval()
    with torch.no_grad():
        expected = model(input_ids=ids).logits.float()
    runner = model_runner(SourceModel.open(str(saved)), dtype=dtype)
    assert torch.allclose(runner.forward(ids)[0].float(), expected, atol=1e-5)


def test_another_shape_is_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    tensors = load_file(path) | {_NAME: torch.ones(2)}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.layer_scalar has shape \(2,\) where"):
        build_skeleton(SourceModel.open(str(saved)))
