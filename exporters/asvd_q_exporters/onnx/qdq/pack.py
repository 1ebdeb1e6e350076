"""Store codes to the tensors of `DequantizeLinear`. Codes are moved, never chosen again."""

from __future__ import annotations

import torch
from torch import Tensor

from asvd_q.quantization import StoredWeight
from asvd_q_exporters.onnx.codes import integer_codes
from asvd_q_exporters.onnx.nbits.pack import pack_bits
from asvd_q_exporters.onnx.qdq.layout import QdqLayout, qdq_layout

__all__ = ["qdq_tensor"]


def qdq_tensor(stored: StoredWeight, part: str, dtype: torch.dtype) -> Tensor:
    """One of the operator's tensors; those of 4 bits as bytes, the first code in the low half.

    Args:
        part: "codes", (in, out); "scales" or "zero_points", (blocks, out) or (out,).
        dtype: of the scales.

    Raises:
        ValueError: no integer codes, or codes in act order.
    """
    weight = integer_codes(stored, "DequantizeLinear")
    layout = qdq_layout(weight.shape, weight.spec)
    if part == "codes":
        return _integers(weight.codes.T, layout)
    values = weight.scales.to(dtype) if part == "scales" else weight.zero_points()
    if layout.block is not None:
        blocks = torch.arange(layout.columns // layout.block) * layout.block // layout.group
        values = values[:, blocks].T
    values = values.reshape(layout.scales_shape)
    return values if part == "scales" else _integers(values, layout)


def _integers(values: Tensor, layout: QdqLayout) -> Tensor:
    """uint8 values of the store, less the offset, as two's complement in the file's width."""
    moved = values - layout.offset  # wraps around at 0, as two's complement does
    if layout.bits == 8:
        return moved if layout.zero_points else moved.view(torch.int8)
    return pack_bits((moved & 0x0F).reshape(-1), 4)
