"""Round to nearest again, in numpy, one group at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asvd_q.plan import QuantSpec

Array = NDArray[np.float64]

SMALLEST_SCALE = 2.0**-14
"""Smallest normal float16."""


@dataclass
class Group:
    """One row's share of one group: its codes, and the grid they are on."""

    codes: Array
    scale: float
    zero: int
    error: float


def round_group(values: Array, spec: QuantSpec, shrink: float = 1.0) -> Group:
    """The grid over [min, max] of the values, zero always on it, shrunk by a factor.

    Args:
        shrink: below 0, a symmetric grid is turned round.
    """
    top = 2**spec.bits - 1
    sign, shrink = np.sign(shrink), abs(shrink)
    low, high = min(values.min(), 0.0) * shrink, max(values.max(), 0.0) * shrink
    if spec.symmetric:
        scale, zero = max(abs(low), abs(high)) * 2 / top, 2 ** (spec.bits - 1)
        scale = sign * float(np.float16(max(scale, SMALLEST_SCALE)))
    else:
        scale = float(np.float16(max((high - low) / top, SMALLEST_SCALE)))
        zero = int(np.clip(np.round(-low / scale), 0, top))
    codes = np.clip(np.round(values / scale) + zero, 0, top)
    return Group(codes, scale, zero, float((((codes - zero) * scale - values) ** 2).sum()))


def shrinks(spec: QuantSpec) -> list[float]:
    """All ranges that the search of the best one tries, as factors of the whole."""
    if not spec.symmetric:
        return list(np.linspace(1, 0.3, 71))
    levels = 2**spec.bits
    shares = np.linspace(1, 0.3, 36)
    return [1.0, -1.0, (levels - 1) / (levels - 2), *np.outer(shares[1:], [1, -1]).ravel()]


def quantize(
    weight: Array, spec: QuantSpec, shrink: float = 1.0
) -> tuple[Array, Array, Array, Array]:
    """Codes (out, in), scales, zero points and squared errors (out, groups)."""
    rows, columns = weight.shape
    width, count = spec.group_width(columns), spec.groups(columns)
    codes = np.zeros_like(weight)
    scales, zeros, errors = (np.zeros((rows, count)) for _ in range(3))
    for row in range(rows):
        for group in range(count):
            part = slice(group * width, min((group + 1) * width, columns))
            found = round_group(weight[row, part], spec, shrink)
            codes[row, part] = found.codes
            scales[row, group], zeros[row, group] = found.scale, found.zero
            errors[row, group] = found.error
    return codes, scales, zeros, errors
