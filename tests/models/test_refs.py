"""A weight reference reads (out, in) whatever shape its parameter is kept in."""

from __future__ import annotations

import pytest
import torch

from asvd_q.models import WeightRef


def ref(shape: tuple[int, int], **where: object) -> WeightRef:
    return WeightRef("model.layers.0.mlp.up", "model.layers.0.mlp", shape, 0, **where)  # type: ignore[arg-type]


def test_a_plain_weight_is_the_parameter_itself() -> None:
    parameter = torch.randn(3, 5)
    assert ref((3, 5)).take(parameter).data_ptr() == parameter.data_ptr()


def test_a_transposed_weight() -> None:
    parameter = torch.randn(5, 3)
    assert torch.equal(ref((3, 5), transposed=True).take(parameter), parameter.T)


def test_rows_of_a_fused_weight_are_output_rows() -> None:
    parameter = torch.randn(9, 5)
    assert torch.equal(ref((3, 5), rows=(3, 6)).take(parameter), parameter[3:6])
    assert torch.equal(ref((3, 5), rows=(3, 6), transposed=True).take(parameter.T), parameter[3:6])


def test_one_expert_of_a_fused_tensor() -> None:
    parameter = torch.randn(4, 5, 6)
    found = ref((3, 5), expert=2, transposed=True, rows=(3, 6)).take(parameter)
    assert torch.equal(found, parameter[2].T[3:6])


def test_a_view_is_taken_so_that_writing_reaches_the_parameter() -> None:
    parameter = torch.zeros(5, 9)
    ref((3, 5), rows=(3, 6), transposed=True).take(parameter).fill_(1)
    assert parameter.sum() == 15
    assert parameter[:, 3:6].all()


def test_another_shape_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up: found \(5, 3\), expected \(3, 5\)"):
        ref((3, 5)).take(torch.zeros(5, 3))


def test_names() -> None:
    found = ref((3, 5), parameter="gate_up_proj")
    assert found.kind == "up"
    assert found.tensor_name == "model.layers.0.mlp.gate_up_proj"
