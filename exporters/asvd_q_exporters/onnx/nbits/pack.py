"""Store codes to the tensors of `MatMulNBits`. Codes are moved, never chosen again."""

from __future__ import annotations

import torch
from torch import Tensor

from asvd_q.quantization import QuantizedWeight, StoredWeight
from asvd_q_exporters.onnx.codes import integer_codes
from asvd_q_exporters.onnx.nbits.layout import NBitsLayout, nbits_layout

__all__ = ["nbits_tensor", "pack_bits", "pack_codes", "pack_scales", "pack_zero_points"]


def nbits_tensor(stored: StoredWeight, part: str, dtype: torch.dtype) -> Tensor:
    """One of the operator's tensors.

    Args:
        part: "codes", "scales" or "zero_points".
        dtype: of the scales.

    Raises:
        ValueError: no integer codes, or codes in act order.
    """
    weight = integer_codes(stored, "ONNX Runtime's MatMulNBits")
    layout = nbits_layout(weight.shape, weight.spec, dtype.itemsize)
    if part == "codes":
        return pack_codes(weight, layout)
    if part == "scales":
        return pack_scales(weight, layout, dtype)
    return pack_zero_points(weight, layout)


def pack_codes(weight: QuantizedWeight, layout: NBitsLayout) -> Tensor:
    """uint8 (out, blocks, block · bits / 8), low bits first, the last block padded.

    Padding repeats the row's last zero point: those columns stand for 0.
    """
    missing = layout.blocks * layout.block - layout.columns
    codes = weight.codes
    if missing:
        padding = weight.zero_points()[:, -1:].expand(-1, missing)
        codes = torch.cat([codes, padding], dim=1)
    return pack_bits(codes + layout.shift, layout.bits).reshape(layout.codes_shape)


def pack_scales(weight: QuantizedWeight, layout: NBitsLayout, dtype: torch.dtype) -> Tensor:
    """(out, blocks) in `dtype`; a scale wider than a block is repeated."""
    return weight.scales[:, _group_of_block(layout)].to(dtype)


def pack_zero_points(weight: QuantizedWeight, layout: NBitsLayout) -> Tensor:
    """uint8 (out, ⌈blocks · bits / 8⌉), low bits first, each row padded to a whole byte."""
    return pack_bits(weight.zero_points()[:, _group_of_block(layout)] + layout.shift, layout.bits)


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Pack the last dimension of uint8 (..., n), each below 2^bits, to (..., ⌈n · bits / 8⌉)."""
    per_byte = 8 // bits
    missing = -values.shape[-1] % per_byte
    if missing:
        values = torch.nn.functional.pad(values, (0, missing))
    parts = values.reshape(*values.shape[:-1], -1, per_byte)
    packed = parts[..., 0].clone()
    for position in range(1, per_byte):
        packed |= parts[..., position] << (position * bits)
    return packed


def _group_of_block(layout: NBitsLayout) -> Tensor:
    return torch.arange(layout.blocks) * layout.block // layout.group
