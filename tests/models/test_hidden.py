"""Hidden states on disk are those in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from asvd_q.models.hidden import HiddenStates


def values(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in [(2, 5, 8), (1, 3, 8)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_states_come_back_bit_for_bit(where: str, dtype: torch.dtype, tmp_path: Path) -> None:
    states = HiddenStates(tmp_path if where == "disk" else None)
    for value in values(dtype):
        states.append(value)
    assert len(states) == 2
    for index, value in enumerate(values(dtype)):
        assert torch.equal(states[index], value)
        assert states[index].dtype == dtype


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_states_are_replaced_in_place(where: str, tmp_path: Path) -> None:
    states = HiddenStates(tmp_path if where == "disk" else None)
    for value in values(torch.float32):
        states.append(value)
    states[0] = torch.ones(3, 4).to(torch.bfloat16)
    assert torch.equal(states[0], torch.ones(3, 4).to(torch.bfloat16))
    assert torch.equal(states[1], values(torch.float32)[1])
    assert len(list(tmp_path.iterdir())) == (2 if where == "disk" else 0)


def test_a_view_and_a_tensor_with_a_gradient_can_be_kept_on_disk(tmp_path: Path) -> None:
    states = HiddenStates(tmp_path)
    view = torch.randn(4, 6, requires_grad=True).T[1:3]
    states.append(view)
    assert torch.equal(states[0], view.detach())
