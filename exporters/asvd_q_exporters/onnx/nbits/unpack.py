"""The tensors of `MatMulNBits` to the matrix they stand for, in numpy.

Written from the operator's specification, and shares no code with the exporter on purpose.

Source: onnxruntime, docs/ContribOperators.md, "com.microsoft.MatMulNBits".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["dequantize"]


def dequantize(
    attributes: Mapping[str, int],
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    zero_points: NDArray[np.uint8] | None = None,
) -> NDArray[np.float32]:
    """W[n, k] = (code − zero point) · scale of the block that k lies in.

    Args:
        attributes: of the node.

    Raises:
        ValueError: the tensors do not fit the attributes.
    """
    rows, columns, bits = attributes["N"], attributes["K"], attributes["bits"]
    block = attributes["block_size"]
    blocks = (columns + block - 1) // block
    q = _unpack(codes.reshape(rows, -1), bits).reshape(rows, blocks, block).astype(np.float32)
    if zero_points is None:
        q -= np.float32(2 ** (bits - 1))
    else:
        zeros = _unpack(zero_points.reshape(rows, -1), bits)[:, :blocks]
        q -= zeros.astype(np.float32)[:, :, None]
    q *= scales.reshape(rows, blocks, 1).astype(np.float32)
    return q.reshape(rows, blocks * block)[:, :columns]


def _unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """(rows, bytes) to (rows, codes): the first code in the lowest bits of a byte."""
    offsets = np.arange(0, 8, bits, dtype=np.uint8)
    mask = np.uint8(2**bits - 1)
    return ((packed[:, :, None] >> offsets) & mask).reshape(packed.shape[0], -1)
