"""Affine grids of integer codes: w = (code − zero point) · scale, scales rounded to float16.

A symmetric grid has one level more on one side of zero than on the other. Under a negative scale
that is the positive side; the search of the range takes whichever loses less, at no cost in bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asvd_q.plan import QuantSpec

__all__ = ["choose_grid", "fit_grid", "round_to_grid"]

_SMALLEST_SHARE = 0.3
"""Of the range that the MSE search tries; at 2 bits the best clip lies below one half."""

_TRIALS = 71
"""How many ranges it tries."""

_SMALLEST = torch.finfo(torch.float16).smallest_normal
_LARGEST = torch.finfo(torch.float16).max


def fit_grid(
    values: Tensor, spec: QuantSpec, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The grid that `spec.clip` asks for: of the whole range, or of a shrunk one.

    Args:
        values: float64 (…, width), one grid for each last dimension.
        importance: broadcast against `values`: weight of each squared error in the search of
            the best range; None weighs all alike.

    Returns:
        float16 scales and float64 integer zero points, both of shape (…). Scales of a symmetric
        grid are below 0 where the search wants its larger side to be the positive one.

    Raises:
        ValueError: a value too large for any scale in float16.
    """
    low, high = values.amin(-1).clamp(max=0), values.amax(-1).clamp(min=0)
    scales, zeros = choose_grid(low, high, spec)
    if spec.clip == "mse":
        best = _squared_error(values, scales, zeros, spec, importance)
        for factor in _factors(spec):
            trial_scales, trial_zeros = choose_grid(low * abs(factor), high * abs(factor), spec)
            if factor < 0:
                trial_scales = -trial_scales
            error = _squared_error(values, trial_scales, trial_zeros, spec, importance)
            better = error < best
            best = torch.where(better, error, best)
            scales = torch.where(better, trial_scales, scales)
            zeros = torch.where(better, trial_zeros, zeros)
    if not torch.isfinite(scales).all():
        raise ValueError("a weight is too large for a scale in float16")
    return scales, zeros


def _factors(spec: QuantSpec) -> list[float]:
    """Factors on the range that are tried after the range itself; below 0 the scale is too."""
    if not spec.symmetric:
        return torch.linspace(1.0, _SMALLEST_SHARE, _TRIALS)[1:].tolist()
    top = (1 << spec.bits) - 1
    shares = torch.linspace(1.0, _SMALLEST_SHARE, _TRIALS // 2 + 1)[1:].tolist()
    # As it is, the range is cut half a step short on one side; the first two do without that.
    return [-1.0, top / (top - 1), *(sign * share for share in shares for sign in (1.0, -1.0))]


def choose_grid(low: Tensor, high: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the grid that covers [low, high].

    Args:
        low, high: float64, of one shape, low ≤ 0 ≤ high.

    Returns:
        float16 scales (above zero) and float64 integer zero points, of that shape.
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


def _squared_error(
    values: Tensor, scales: Tensor, zeros: Tensor, spec: QuantSpec, importance: Tensor | None
) -> Tensor:
    wide_scales, wide_zeros = scales.unsqueeze(-1), zeros.unsqueeze(-1)
    codes = round_to_grid(values, wide_scales, wide_zeros, spec)
    squares = ((codes - wide_zeros) * wide_scales.double() - values).square()
    return (squares if importance is None else squares * importance).sum(-1)
