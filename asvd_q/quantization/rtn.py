"""Round to nearest: the grid from the weights alone, every value to its nearest point."""

from __future__ import annotations

import torch
from torch import Tensor

from asvd_q.plan import QuantSpec
from asvd_q.quantization.weights import QuantizedWeight

__all__ = ["choose_grid", "quantize_rtn", "round_to_grid"]

_SHRINKS = torch.linspace(1.0, 0.3, 71, dtype=torch.float64)
"""Factors on the range that the MSE search tries; at 2 bits the best clip lies below one half."""

_SMALLEST = torch.finfo(torch.float16).smallest_normal
_LARGEST = torch.finfo(torch.float16).max


def quantize_rtn(weight: Tensor, spec: QuantSpec, gram: Tensor | None = None) -> QuantizedWeight:
    """Quantize by rounding to nearest.

    Args:
        weight: (out, in), floating point, finite.
        spec: bits, group size, symmetry, and how the range is clipped: `minmax` takes it
            whole, `mse` shrinks it to where the summed squared error of the group is smallest.
        gram: not used; part of the quantizers' common signature.

    Returns:
        Codes whose scales are already rounded to float16.

    Raises:
        ValueError: the weight holds NaN or infinity, or a value no float16 scale can reach.
    """
    if not torch.isfinite(weight).all():
        raise ValueError("the weight holds NaN or infinity")
    grouped = _grouped(weight.detach().double(), spec)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scales, zeros = choose_grid(low, high, spec)
    if spec.clip == "mse":
        best = _squared_error(grouped, scales, zeros, spec)
        for shrink in _SHRINKS[1:]:
            trial_scales, trial_zeros = choose_grid(low * shrink, high * shrink, spec)
            error = _squared_error(grouped, trial_scales, trial_zeros, spec)
            better = error < best
            best = torch.where(better, error, best)
            scales = torch.where(better, trial_scales, scales)
            zeros = torch.where(better, trial_zeros, zeros)
    if not torch.isfinite(scales).all():
        raise ValueError("a weight is too large for a scale in float16")
    codes = round_to_grid(grouped, scales.unsqueeze(-1), zeros.unsqueeze(-1), spec)
    rows, columns = weight.shape
    return QuantizedWeight(
        codes=codes.reshape(rows, -1)[:, :columns].to(torch.uint8).contiguous(),
        scales=scales,
        zeros=None if spec.symmetric else zeros.to(torch.uint8),
        spec=spec,
    )


def choose_grid(low: Tensor, high: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the grid that covers [low, high].

    Args:
        low, high: float64, of one shape, low ≤ 0 ≤ high.

    Returns:
        float16 scales (never zero) and float64 integer zero points, of that shape.
        Symmetric grids have 2^bits levels around the code 2^(bits−1), as GPTQ's have.
    """
    top = (1 << spec.bits) - 1
    if spec.symmetric:
        reach = torch.maximum(-low, high)
        scales = (2 * reach / top).clamp(min=_SMALLEST).to(torch.float16)
        return scales, torch.full_like(low, 1 << (spec.bits - 1))
    scales = ((high - low) / top).clamp(min=_SMALLEST).to(torch.float16)
    zeros = (-low / scales.double().clamp(max=_LARGEST)).round().clamp(0, top)
    return scales, zeros


def round_to_grid(values: Tensor, scales: Tensor, zeros: Tensor, spec: QuantSpec) -> Tensor:
    """Nearest code of every value; all arguments broadcast against `values`."""
    codes = (values / scales.double()).round() + zeros
    return codes.clamp(0, (1 << spec.bits) - 1)


def _grouped(weight: Tensor, spec: QuantSpec) -> Tensor:
    """(out, groups, width); the last group is padded with zeros, which every grid holds exactly."""
    rows, columns = weight.shape
    width, groups = spec.group_width(columns), spec.groups(columns)
    missing = groups * width - columns
    if missing:
        weight = torch.nn.functional.pad(weight, (0, missing))
    return weight.reshape(rows, groups, width)


def _squared_error(values: Tensor, scales: Tensor, zeros: Tensor, spec: QuantSpec) -> Tensor:
    wide_scales, wide_zeros = scales.unsqueeze(-1), zeros.unsqueeze(-1)
    codes = round_to_grid(values, wide_scales, wide_zeros, spec)
    return ((codes - wide_zeros) * wide_scales.double() - values).square().sum(-1)
