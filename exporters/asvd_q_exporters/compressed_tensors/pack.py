"""Codes of a matrix into the 32-bit words of the pack-quantized format.

Source: compressed-tensors 0.20, `pack_to_int32`: a code may begin in one word and end in the next.
(Versions before mid-2026 filled words with whole codes; their shapes differ for 3, 5, 6 and 7
bits, so that they refuse these files.) It stores signed codes plus 2^(bits−1), which are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asvd_q.quantization import QuantizedWeight
from asvd_q_exporters.compressed_tensors.layout import group_width
from asvd_q_exporters.gptq.pack import pack_rows

__all__ = ["pack_columns", "pack_weight"]

_WORD = 32


def pack_columns(values: Tensor, bits: int) -> Tensor:
    """Pack unsigned integers along each row, low bits first; the last word is filled with zeros.

    Args:
        values: integers below 2^bits, (rows, columns).
        bits: width of a value, at most 8.

    Returns:
        int32 (rows, ⌈columns · bits / 32⌉).
    """
    columns = values.shape[1]
    filled = torch.nn.functional.pad(values, (0, -columns % _WORD))
    return pack_rows(filled.T, bits).T[:, : -(-columns * bits // _WORD)].contiguous()


def pack_weight(weight: QuantizedWeight) -> dict[str, Tensor]:
    """The three tensors of one matrix (out, in), by suffix.

    Args:
        weight: symmetric, its columns grouped as they stand.
    """
    columns = weight.shape[1]
    width = group_width(columns, weight.spec)
    return {
        "weight_packed": pack_columns(weight.codes, weight.spec.bits),
        "weight_scale": weight.scales[:, weight.group_index[::width]].contiguous(),
        "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
    }
