"""Rotations are recognized by what they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from asvd_q_exporters.onnx.fused.rotary import RotationKind, rotation_kind


def _rotated(states: Tensor, cos: Tensor, sin: Tensor, kind: RotationKind) -> Tensor:
    """In complex numbers: every pair times cos + i sin."""
    width = cos.shape[-1]
    head, kept = states[..., :width], states[..., width:]
    step = slice(None, None, 2) if kind.alternating else slice(width // 2)
    turn = torch.complex(cos[:, None, :, step], sin[:, None, :, step])
    if kind.interleaved:
        pairs = torch.view_as_complex(head.unflatten(-1, (-1, 2)).contiguous())
        head = torch.view_as_real(pairs * turn).flatten(-2)
    else:
        turned = torch.complex(*head.chunk(2, dim=-1)) * turn
        head = torch.cat((turned.real, turned.imag), dim=-1)
    return torch.cat((head, kept), dim=-1)


def _function(kind: RotationKind) -> Callable[..., Any]:
    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return _rotated(q, cos, sin, kind), _rotated(k, cos, sin, kind)

    return rotate


KINDS = [RotationKind(one, other) for one in (False, True) for other in (False, True)]
HALVES = KINDS[0]


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_rotation_is_found_by_what_it_computes(kind: RotationKind, part: bool) -> None:
    assert rotation_kind(_function(kind), part=part) == kind


def test_rotations_of_transformers() -> None:
    from transformers.models.cohere import modeling_cohere
    from transformers.models.glm import modeling_glm
    from transformers.models.llama import modeling_llama
    from transformers.models.phi3 import modeling_phi3

    def kinds(file: Any) -> list[RotationKind | None]:
        function = file.apply_rotary_pos_emb
        return [rotation_kind(function, part=part) for part in (False, True)]

    assert kinds(modeling_llama) == [HALVES, None]
    assert kinds(modeling_phi3) == [HALVES, HALVES]
    assert kinds(modeling_glm) == [RotationKind(interleaved=True, alternating=False)] * 2
    assert kinds(modeling_cohere)[0] == RotationKind(interleaved=True, alternating=True)


def _backwards(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return _function(HALVES)(q, k, cos, -sin)


def _queries_alone(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return _rotated(q, cos, sin, HALVES), k


def _longer(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return _function(HALVES)(q * 1.01, k, cos, sin)


def _not_at_all(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return q, k


def _in_another_shape(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return q.transpose(1, 2), k.transpose(1, 2)


def _in_bfloat16(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return [one.to(torch.bfloat16) for one in _function(HALVES)(q, k, cos, sin)]


def _three(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return (*_function(HALVES)(q, k, cos, sin), cos)


def _nothing(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return None


def _refuses(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    raise ValueError("not with these")


def _wants_more(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Any:
    return q, k


@pytest.mark.parametrize(
    "function",
    [
        _backwards,
        _queries_alone,
        _longer,
        _not_at_all,
        _in_another_shape,
        _in_bfloat16,
        _three,
        _nothing,
        _refuses,
        _wants_more,
    ],
)
def test_other_rotations_are_none(function: Callable[..., Any]) -> None:
    assert rotation_kind(function) is None
    assert rotation_kind(function, part=True) is None
