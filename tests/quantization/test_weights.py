"""What a store holds for one matrix: tensors, bytes, and the way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from asvd_q.plan import FloatType, QuantSpec, store_bytes
from asvd_q.quantization import (
    TORCH_TYPES,
    FloatWeight,
    QuantizedWeight,
    float_type_of,
    quantize,
    weight_from_tensors,
)
from tests.quantization.strategies import specs, weights


@given(weight=weights(), spec=specs())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_tensors_are_enough_to_get_the_weight_back(weight: Tensor, spec: QuantSpec) -> None:
    found = quantize(weight, spec)
    again = weight_from_tensors(found.tensors(), spec, found.shape)
    assert torch.equal(again.dequantize(), found.dequantize())
    assert {name: part.dtype for name, part in again.tensors().items()} == {
        "codes": torch.uint8,
        "scales": torch.float16,
        **({} if spec.symmetric else {"zeros": torch.uint8}),
    }
    assert again.shape == weight.shape
    assert again.nbytes == found.nbytes == store_bytes(found.shape, spec, "float32")


@pytest.mark.parametrize("float_type", ["float32", "float16", "bfloat16"])
def test_floats_are_kept_bit_for_bit(float_type: FloatType) -> None:
    dtype = TORCH_TYPES[float_type]
    matrix = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    again = weight_from_tensors(FloatWeight(matrix).tensors(), None, (3, 5))
    assert torch.equal(again.dequantize(dtype), matrix)
    assert again.dequantize().dtype == torch.float32
    assert again.nbytes == store_bytes((3, 5), None, float_type) == 15 * dtype.itemsize
    assert float_type_of(dtype) == float_type


def test_integers_are_no_float_type() -> None:
    with pytest.raises(ValueError, match=r"torch\.int8 is not one of float32"):
        float_type_of(torch.int8)


@pytest.mark.parametrize(
    ("shape", "settings_", "expected"),
    [
        # 10·100 codes of 4 bits are 500 bytes; 10 rows · 4 groups of 2-byte scales are 80.
        ((10, 100), {"bits": 4, "group_size": 32}, 580),
        # The same with 40 zero points of 4 bits, 20 bytes.
        ((10, 100), {"bits": 4, "group_size": 32, "symmetric": False}, 600),
        # One scale per row: 1000 bytes of codes and 20 of scales.
        ((10, 100), {"bits": 8, "group_size": -1}, 1020),
        # A group wider than the matrix is one group per row.
        ((10, 100), {"bits": 8, "group_size": 256}, 1020),
        # 21 codes of 3 bits and 3 scales of 16: 111 bits, rounded up to 14 bytes.
        ((3, 7), {"bits": 3, "group_size": 16}, 14),
        # With 3 zero points of 3 bits: 120 bits.
        ((3, 7), {"bits": 3, "group_size": 16, "symmetric": False}, 15),
    ],
    ids=["group", "zeros", "channel", "over-wide", "odd", "odd-zeros"],
)
def test_bytes_against_a_count_by_hand(
    shape: tuple[int, int], settings_: dict[str, Any], expected: int
) -> None:
    spec = QuantSpec.model_validate(settings_)
    assert store_bytes(shape, spec, "float32") == expected
    assert quantize(torch.ones(shape), spec).nbytes == expected


def test_act_order_permutes_the_groups_of_columns() -> None:
    """The column grouped first by the permutation uses the first scale, wherever it stands."""
    spec = QuantSpec(bits=8, group_size=16)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(2))
    sorted_ = quantize(weight[:, order], spec)
    assert isinstance(sorted_, QuantizedWeight)
    codes = torch.empty_like(sorted_.codes)
    codes[:, order] = sorted_.codes
    found = QuantizedWeight(codes, sorted_.scales, None, spec, order.to(torch.int32))
    expected = torch.empty(3, 40)
    expected[:, order] = sorted_.dequantize()
    assert torch.equal(found.dequantize(), expected)
    again = weight_from_tensors(found.tensors(), spec, found.shape)
    assert torch.equal(again.dequantize(), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": torch.zeros(2, 32, dtype=torch.int32)}, "codes are uint8"),
        ({"scales": torch.ones(2, 2)}, "scales float16"),
        ({"scales": torch.ones(2, 3, dtype=torch.float16)}, r"scales have shape \(2, 3\)"),
        ({"zeros": None}, "if and only if"),
        ({"zeros": torch.zeros(2, 1, dtype=torch.uint8)}, r"zero points have shape \(2, 1\)"),
    ],
    ids=["codes-type", "scales-type", "scales-shape", "zeros-missing", "zeros-shape"],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    parts: dict[str, Any] = {
        "codes": torch.zeros(2, 32, dtype=torch.uint8),
        "scales": torch.ones(2, 2, dtype=torch.float16),
        "zeros": torch.zeros(2, 2, dtype=torch.uint8),
        "spec": QuantSpec(bits=4, group_size=16, symmetric=False),
    }
    with pytest.raises(ValueError, match=message):
        QuantizedWeight(**(parts | changes))
