"""Round to nearest: the grid from the weights alone, every value to its nearest point."""

from __future__ import annotations

import torch
from torch import Tensor

from asvd_q.plan import QuantSpec
from asvd_q.quantization.grid import fit_grid, round_to_grid
from asvd_q.quantization.weights import QuantizedWeight

__all__ = ["quantize_rtn"]


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
    scales, zeros = fit_grid(grouped, spec)
    codes = round_to_grid(grouped, scales.unsqueeze(-1), zeros.unsqueeze(-1), spec)
    rows, columns = weight.shape
    return QuantizedWeight(
        codes=codes.reshape(rows, -1)[:, :columns].to(torch.uint8).contiguous(),
        scales=scales,
        zeros=None if spec.symmetric else zeros.to(torch.uint8),
        spec=spec,
    )


def _grouped(weight: Tensor, spec: QuantSpec) -> Tensor:
    """(out, groups, width); the last group is padded with zeros, which every grid holds exactly."""
    rows, columns = weight.shape
    width, groups = spec.group_width(columns), spec.groups(columns)
    missing = groups * width - columns
    if missing:
        weight = torch.nn.functional.pad(weight, (0, missing))
    return weight.reshape(rows, groups, width)
