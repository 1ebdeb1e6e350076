"""Round to nearest again, in numpy, and the search of the range by brute force."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asvd_q.plan import QuantSpec

Array = NDArray[np.float64]

SMALLEST_SCALE = 2.0**-14
"""Smallest normal float16."""


@dataclass
class Groups:
    """Codes (…, width), and of each group (…): its grid, and its squared error."""

    codes: Array
    scale: Array
    zero: Array
    error: Array


def round_groups(
    values: Array, spec: QuantSpec, shrink: float = 1.0, costs: Array | None = None
) -> Groups:
    """The grids over [min, max] of the values, zero always on them, shrunk by a factor.

    Args:
        values: (…, width).
        shrink: below 0, a symmetric grid is turned round.
        costs: (width,), of a unit squared error in each column.
    """
    top = 2**spec.bits - 1
    sign, shrink = np.sign(shrink), abs(shrink)
    low = np.minimum(values.min(-1), 0.0) * shrink
    high = np.maximum(values.max(-1), 0.0) * shrink
    if spec.symmetric:
        scale = sign * float16(np.maximum(np.maximum(-low, high) * 2 / top, SMALLEST_SCALE))
        zero = np.full_like(scale, 2 ** (spec.bits - 1))
    else:
        scale = float16(np.maximum((high - low) / top, SMALLEST_SCALE))
        zero = np.clip(np.round(-low / scale), 0, top)
    return on_grids(values, scale, zero, spec, costs)


def on_grids(
    values: Array, scale: Array, zero: Array, spec: QuantSpec, costs: Array | None = None
) -> Groups:
    """Values (…, width) rounded to given grids (…)."""
    step, shift = np.expand_dims(scale, -1), np.expand_dims(zero, -1)
    codes = np.clip(np.round(values / step) + shift, 0, 2**spec.bits - 1)
    squares = ((codes - shift) * step - values) ** 2
    return Groups(codes, scale, zero, (squares if costs is None else squares * costs).sum(-1))


def float16(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float64)


def least_errors(values: Array, spec: QuantSpec, costs: Array | None = None) -> Array:
    """The smallest error of each group (…) over all of `shrinks`, each tried for each group."""
    errors = [round_groups(values, spec, shrink, costs).error for shrink in shrinks(spec)]
    return np.stack(errors).min(0)


def shrinks(spec: QuantSpec) -> list[float]:
    """Factors on the whole range, close together, from it down to the smallest that can win."""
    if not spec.symmetric:
        return list(np.linspace(1, 0.3, 71))
    levels = 2**spec.bits
    shares = np.linspace(1, 0.3, 36)
    return [1.0, -1.0, (levels - 1) / (levels - 2), *np.outer(shares[1:], [1, -1]).ravel()]


def quantize(weight: Array, spec: QuantSpec) -> tuple[Array, Array, Array, Array]:
    """Codes (out, in), scales, zero points and squared errors (out, groups); whole ranges."""
    rows, columns = weight.shape
    width, count = spec.group_width(columns), spec.groups(columns)
    codes = np.zeros_like(weight)
    scales, zeros, errors = (np.zeros((rows, count)) for _ in range(3))
    for row in range(rows):
        for group in range(count):
            part = slice(group * width, min((group + 1) * width, columns))
            found = round_groups(weight[row, part], spec)
            codes[row, part] = found.codes
            scales[row, group], zeros[row, group] = found.scale, found.zero
            errors[row, group] = found.error
    return codes, scales, zeros, errors
