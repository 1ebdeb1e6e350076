"""Affine grids of integer codes: w = (code − zero point) · scale, scales rounded to float16.

A symmetric grid has one level more on one side of zero than on the other. Under a negative scale
that is the positive side; the search of the range takes whichever loses less, at no cost in bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asvd_q.plan import QuantSpec

__all__ = ["choose_grid", "fit_grid", "round_to_grid", "search_trials"]

_SHARES = {
    2: (18, 0.3, 0.7),
    3: (22, 0.3, 1.0),
    4: (28, 0.3, 1.6),
    5: (32, 0.4, 1.8),
    6: (32, 0.6, 1.8),
    7: (32, 0.75, 1.8),
    8: (28, 0.85, 1.8),
}
"""Bits → how many shares of the range the MSE search tries, the smallest, and how they crowd
towards the largest: their distance from it goes with this power. With more bits a cut costs more
steps, so that smaller shares never win, and the error turns up and down within a smaller change."""

_CHUNK = 1 << 15
"""Values that are searched at once: what the search works in then stays in a core's cache."""

_LANES = 64
"""Groups are searched in multiples of this many, so that BLAS sums each of them the same way
whatever stands beside it."""

_SMALLEST = torch.finfo(torch.float16).smallest_normal
_LARGEST = torch.finfo(torch.float16).max


def fit_grid(
    values: Tensor, spec: QuantSpec, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The grid that `spec.clip` asks for: of the whole range, or of the one that loses least.

    Args:
        values: float64 (…, width), one grid for each last dimension.
        importance: float64 (width,), none below 0: weight of each squared error in the search of
            the best range; None weighs all alike.

    Returns:
        float16 scales and float64 integer zero points, both of shape (…). Scales of a symmetric
        grid are below 0 where the search wants its larger side to be the positive one.

    Raises:
        ValueError: a value too large for any scale in float16.
    """
    low, high = values.amin(-1).clamp(max=0), values.amax(-1).clamp(min=0)
    scales, zeros = choose_grid(low, high, spec)
    if not torch.isfinite(scales).all():
        raise ValueError("a weight is too large for a scale in float16")
    if spec.clip == "mse" and scales.numel():
        width = values.shape[-1]
        rows, found = values.reshape(-1, width), (scales.view(-1), zeros.view(-1))
        weights = values.new_ones(width) if importance is None else importance
        size = max(_CHUNK // width // _LANES, 1) * _LANES
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            scale, zero = (tensor[part] for tensor in found)
            _search(rows[part].T, scale, zero, spec, weights)
    return scales, zeros


def search_trials(spec: QuantSpec) -> int:
    """How often the search of the range rounds every value; 0 where the range is taken whole."""
    return 2 * _SHARES[spec.bits][0] if spec.clip == "mse" else 0


def _search(
    columns: Tensor, scales: Tensor, zeros: Tensor, spec: QuantSpec, weights: Tensor
) -> None:
    """Replace grids of whole ranges where a better one is found.

    A grid of each share of the range rounds the values; the scale is then moved to where these
    codes lose least, s = ⟨w, q⟩ / ⟨q, q⟩, which can only lower the error. So every trial stands
    for the scales around it, and few are needed. Each share is tried with the larger side of a
    symmetric grid below and above zero, and with the zero points on both sides of the exact one.
    Trials are compared in float32; the winner, rounded to float16, has to beat the whole range in
    float64.

    Args:
        columns: float64 (width, groups), a few of them.
        scales, zeros: float16 and float64 (groups,), of the whole range; written to.
        weights: float64 (width,).
    """
    groups = columns.shape[1]
    missing = -groups % _LANES
    single = torch.nn.functional.pad(columns.float(), (0, missing)).contiguous()
    weight = (weights / weights.max().clamp(min=torch.finfo(weights.dtype).tiny)).float()
    low, high = single.amin(0).clamp(max=0), single.amax(0).clamp(min=0)
    top = (1 << spec.bits) - 1
    zero = torch.nn.functional.pad(zeros.float(), (0, missing))
    if spec.symmetric:
        span, other = 2 * torch.maximum(-low, high), top - zero
    else:
        span = high - low
        exact = -low * top / span.clamp(min=_SMALLEST)
        other = torch.where(exact > zero, zero + 1, zero - 1).clamp_(0, top)
    whole = (span / top).clamp_(min=_SMALLEST)
    steps = _shares(spec).to(whole)[:, None] * whole.repeat(2)
    pair = torch.stack([zero, other])
    errors, fitted = _refined(single.repeat(1, 2), steps, pair.view(-1), top, weight)
    # Over the trials of both zero points: the best, and then which zero point it is of.
    best = errors.view(-1, len(zero)).min(0, keepdim=True).indices
    step = fitted.view(-1, len(zero)).gather(0, best)
    second = best % 2
    zero = pair.gather(0, second)[0]
    step = _refined(single, step, zero, top, weight)[1][0, :groups].clamp_(min=_SMALLEST)
    if spec.symmetric:
        found, found_zeros = (step * (1 - 2 * second[0, :groups])).to(torch.float16), zeros
    else:
        found, found_zeros = step.to(torch.float16), zero[:groups].to(zeros)
    error = _squared_error(columns, found, found_zeros, spec, weights)
    better = error < _squared_error(columns, scales, zeros, spec, weights)
    scales.copy_(torch.where(better, found, scales))
    zeros.copy_(torch.where(better, found_zeros, zeros))


def _refined(
    columns: Tensor, steps: Tensor, zeros: Tensor, top: int, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The step that suits the codes of each trial best, and its weighted squared error.

    With u = w / s and d = u − q, the residual in steps, the best step is s · (1 + ⟨d, q⟩ / ⟨q, q⟩),
    and ⟨q, q⟩ = ⟨u, u⟩ − 2 ⟨d, q⟩ − ⟨d, d⟩.

    Args:
        columns: float32 (width, groups).
        steps: float32 (trials, groups), above 0.
        zeros: float32 (groups,); codes are in [0, top]. A grid under a negative scale is that
            with the zero point top − z, as far as errors go.
        weight: float32 (width,).

    Returns:
        Errors and steps, (trials, groups).
    """
    first, last = -zeros, top - zeros
    residual, codes = torch.empty_like(columns), torch.empty_like(columns)
    residual_rows, code_rows = residual.T, codes.T
    squares, mixed = torch.empty_like(steps), torch.empty_like(steps)
    for factor, square, mix in zip(steps.reciprocal(), squares, mixed, strict=True):
        torch.mul(columns, factor, out=residual)
        torch.round(residual, out=codes)
        residual.sub_(codes.clamp_(first, last))
        codes.mul_(residual)
        torch.mv(code_rows, weight, out=mix)
        residual.square_()
        torch.mv(residual_rows, weight, out=square)
    norms = (weight @ columns.square()) / steps.square() - 2 * mixed - squares
    shift = mixed / norms.clamp_(min=torch.finfo(norms.dtype).tiny)
    errors = squares.sub_(mixed.mul_(shift)).mul_(steps.square())
    return errors, steps * shift.add_(1)


def _shares(spec: QuantSpec) -> Tensor:
    """Shares of the range to try, the largest first; float64.

    Symmetric grids cut the whole range half a step short on one side, and zero points are
    rounded: the largest share does without a cut, and leaves a little to choose from.
    """
    count, smallest, power = _SHARES[spec.bits]
    largest = 1 + 1.25 / ((1 << spec.bits) - 2)
    places = torch.linspace(0, 1, count, dtype=torch.float64)
    return largest - (largest - smallest) * places**power


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
    columns: Tensor, scales: Tensor, zeros: Tensor, spec: QuantSpec, weights: Tensor
) -> Tensor:
    codes = round_to_grid(columns, scales, zeros, spec)
    return weights @ codes.sub_(zeros).mul_(scales.double()).sub_(columns).square_()
