"""The tensors of `MatMulBnb4` to the matrix they stand for, in numpy.

Written from the specifications, and shares no code with the exporter on purpose.

Sources: onnxruntime, docs/ContribOperators.md, "com.microsoft.MatMulBnb4"; QLoRA, arXiv
2305.14314, appendix E (the values of NF4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["dequantize"]

_NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    dtype=np.float32,
)


def dequantize(
    attributes: Mapping[str, int], packed: NDArray[np.uint8], absmax: NDArray[Any]
) -> NDArray[np.float32]:
    """W flat, row after row: the value of a code · the scale of the block that it lies in.

    Args:
        attributes: of the node.
        packed: (⌈N · K / 2⌉,), two codes per byte, the first in the high half.
        absmax: (⌈N · K / block⌉,).

    Raises:
        ValueError: the node is not of NF4, or its tensors do not fit its attributes.
    """
    rows, columns, block = attributes["N"], attributes["K"], attributes["block_size"]
    count = rows * columns
    if attributes["quant_type"] != 1 or attributes.get("transB", 1) != 1:
        raise ValueError("not NF4 with rows of output channels")
    if packed.size != (count + 1) // 2 or absmax.size != (count + block - 1) // block:
        raise ValueError("codes or scales are missing")
    codes = np.empty(2 * packed.size, dtype=np.uint8)
    codes[0::2] = packed.reshape(-1) >> 4
    codes[1::2] = packed.reshape(-1) & 0x0F
    scales = np.repeat(absmax.reshape(-1).astype(np.float32), block)[:count]
    return (_NF4[codes[:count]] * scales).reshape(rows, columns)
