"""Round to nearest: properties over random shapes and settings, and a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from asvd_q.plan import QuantSpec
from asvd_q.quantization import quantize
from asvd_q.quantization.rtn import quantize_rtn
from asvd_q.quantization.weights import QuantizedWeight
from tests.quantization import reference
from tests.quantization.strategies import specs, weights

quick = settings(max_examples=150, deadline=None, derandomize=True)


def wide(per_group: Tensor, found: QuantizedWeight) -> Tensor:
    """(out, groups) spread over the columns, float64."""
    return per_group.double()[:, found.group_index]


@given(weight=weights(), spec=specs())
@quick
def test_every_value_lands_on_its_nearest_grid_point(weight: Tensor, spec: QuantSpec) -> None:
    found = quantize_rtn(weight, spec)
    top = 2**spec.bits - 1
    assert found.codes.shape == weight.shape
    assert int(found.codes.max()) <= top
    assert torch.isfinite(found.scales).all()
    turned = spec.symmetric and spec.clip == "mse"
    assert (found.scales.abs() > 0).all() if turned else (found.scales > 0).all()
    step, zero = wide(found.scales, found), wide(found.zero_points(), found)
    exact = (found.codes.double() - zero) * step
    # The grid is the rounded one: its ends are where the stored scale and zero point put them.
    first, last = -zero * step, (top - zero) * step
    inside = weight.double().clamp(first.minimum(last), first.maximum(last))
    assert ((exact - inside).abs() <= step.abs() / 2 * (1 + 1e-12)).all()
    # float32 is what is evaluated: the same points to its own rounding.
    torch.testing.assert_close(found.dequantize().double(), exact, rtol=1e-6, atol=0)


@given(weight=weights(), spec=specs())
@quick
def test_minmax_loses_no_more_than_half_a_step_anywhere(weight: Tensor, spec: QuantSpec) -> None:
    spec = spec.model_copy(update={"clip": "minmax"})
    found = quantize_rtn(weight, spec)
    step = wide(found.scales, found)
    error = (found.dequantize().double() - weight.double()).abs()
    # Half a step of rounding. The scale is rounded to float16, 2^-11 at most, which over the
    # 2^bits steps of the grid moves its end; an asymmetric zero point is rounded to a code.
    slack = 2**spec.bits * 2.0**-11 + (0.0 if spec.symmetric else 0.5)
    assert (error <= step * (0.5 + slack) * (1 + 1e-6)).all()


@given(weight=weights(), spec=specs())
@quick
def test_a_second_implementation_chooses_the_same_codes(weight: Tensor, spec: QuantSpec) -> None:
    spec = spec.model_copy(update={"clip": "minmax"})
    found = quantize_rtn(weight, spec)
    codes, scales, zeros, _ = reference.quantize(weight.double().numpy(), spec)
    np.testing.assert_array_equal(found.scales.double().numpy(), scales)
    np.testing.assert_array_equal(found.zero_points().numpy(), zeros)
    np.testing.assert_array_equal(found.codes.numpy(), codes)


@given(weight=weights(), spec=specs())
@quick
def test_mse_is_never_worse_than_minmax_in_any_group(weight: Tensor, spec: QuantSpec) -> None:
    values = weight.double().numpy()
    found = quantize_rtn(weight, spec.model_copy(update={"clip": "mse"}))
    _, _, _, whole = reference.quantize(values, spec)
    step, zero = wide(found.scales, found), wide(found.zero_points(), found)
    squares = ((found.codes.double() - zero) * step - weight.double()).square()
    per_group = torch.zeros(whole.shape, dtype=torch.float64)
    per_group.index_add_(1, found.group_index, squares)
    assert (per_group.numpy() <= whole * (1 + 1e-9) + 1e-300).all()


@given(weight=weights(), spec=specs())
@quick
def test_same_input_same_bytes_and_no_change_to_the_input(weight: Tensor, spec: QuantSpec) -> None:
    before = weight.clone()
    first, second = quantize(weight, spec).tensors(), quantize(weight, spec).tensors()
    assert torch.equal(weight, before)
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


@given(weight=weights(), spec=specs())
@quick
def test_a_row_does_not_depend_on_the_others(weight: Tensor, spec: QuantSpec) -> None:
    whole, alone = quantize_rtn(weight, spec), quantize_rtn(weight[-1:], spec)
    assert torch.equal(whole.codes[-1:], alone.codes)
    assert torch.equal(whole.scales[-1:], alone.scales)


@pytest.mark.parametrize("clip", ["minmax", "mse"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_zero_stays_exactly_zero(bits: int, symmetric: bool, clip: str) -> None:
    spec = QuantSpec.model_validate({"bits": bits, "symmetric": symmetric, "clip": clip})
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    weight[0] = 0
    weight[:, ::5] = 0
    result = quantize_rtn(weight, spec).dequantize()
    assert not result[0].any()
    assert not result[:, ::5].any()


@pytest.mark.parametrize("value", [-5.0, 0.25, 3.0])
@pytest.mark.parametrize("bits", range(2, 9))
def test_constant_rows_are_nearly_exact_when_asymmetric(bits: int, value: float) -> None:
    weight = torch.full((2, 64), value)
    result = quantize_rtn(weight, QuantSpec(bits=bits, group_size=32, symmetric=False)).dequantize()
    torch.testing.assert_close(result, weight, rtol=2**-11, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused(value: float) -> None:
    weight = torch.ones(2, 32)
    weight[1, 7] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_rtn(weight, QuantSpec())


@pytest.mark.parametrize("clip", ["minmax", "mse"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_a_value_beyond_float16_scales_is_refused(symmetric: bool, clip: str) -> None:
    spec = QuantSpec.model_validate({"bits": 4, "symmetric": symmetric, "clip": clip})
    with pytest.raises(ValueError, match="too large for a scale in float16"):
        quantize_rtn(torch.full((1, 32), 1e30), spec)
