"""The tensors of `GatherBlockQuantized` to the matrix they stand for, in numpy.

Source: the operator's own documentation in ONNX Runtime's schema, "GatherBlockQuantized".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asvd_q_exporters.onnx.nbits import unpack as nbits

__all__ = ["dequantize_rows"]


def dequantize_rows(
    attributes: Mapping[str, int],
    shape: tuple[int, int],
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    zero_points: NDArray[np.uint8] | None = None,
) -> NDArray[np.float32]:
    """All rows: W[n, k] = (code − zero point) · scale of the block that k lies in.

    Codes are packed as in `MatMulNBits`, and so are zero points; a missing one is 2^(bits−1).

    Args:
        attributes: of the node.
        shape: (vocabulary, hidden), which the node itself does not say.

    Raises:
        ValueError: rows do not run along the first axis, or the tensors do not fit the rest.
    """
    if attributes["gather_axis"] != 0 or attributes["quantize_axis"] != 1:
        raise ValueError("not rows in blocks of columns")
    sizes = {"N": shape[0], "K": shape[1]}
    return nbits.dequantize({**attributes, **sizes}, codes, scales, zero_points)
