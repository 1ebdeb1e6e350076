"""The tensors of `DequantizeLinear` to the matrix they stand for, in numpy.

Written from the operator's specification, and shares no code with the exporter on purpose.

Source: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["dequantize"]


def dequantize(
    attributes: Mapping[str, int],
    codes: NDArray[Any],
    scales: NDArray[Any],
    zero_points: NDArray[Any] | None = None,
) -> NDArray[np.float32]:
    """W[n, k] = (code − zero point) · scale of the block or channel of codes (in, out) at k, n.

    Args:
        attributes: of the node.

    Raises:
        ValueError: the tensors do not fit the attributes or each other.
    """
    values = codes.astype(np.float32)
    if zero_points is not None:
        if zero_points.shape != scales.shape or zero_points.dtype != codes.dtype:
            raise ValueError("zero points are not as scales and codes are")
        values -= _spread(zero_points, attributes, codes.shape)
    values *= _spread(scales, attributes, codes.shape)
    return values.T


def _spread(
    values: NDArray[Any], attributes: Mapping[str, int], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """One value for every code, or what broadcasts to that."""
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
    found = values.astype(np.float32)
    if block == 0:
        if values.shape != (shape[axis],):
            raise ValueError("not one value per channel")
        return np.expand_dims(found, 1 - axis)
    found = np.repeat(found, block, axis=axis)
    if found.shape[1 - axis] != shape[1 - axis] or not 0 <= found.shape[axis] - shape[axis] < block:
        raise ValueError("not one value per block")
    return found[: shape[0], : shape[1]]
