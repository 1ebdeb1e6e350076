"""Integer codes into the tensors of the GPTQ format."""

from __future__ import annotations

import torch
from torch import Tensor

from asvd_q.quantization import QuantizedWeight

__all__ = ["pack_rows", "pack_weight"]

_WORD = 32


def pack_rows(values: Tensor, bits: int) -> Tensor:
    """Pack unsigned integers along the first dimension into 32-bit words, low bits first.

    Every column is one stream of bits; a 3-bit value may begin in one word and end in the next.

    Args:
        values: integers below 2^bits, (rows, columns), rows a multiple of 32.
        bits: width of a value, at most 8.

    Returns:
        int32 (rows · bits / 32, columns).
    """
    rows, columns = values.shape
    if rows % _WORD:
        raise ValueError(f"{rows} rows of {bits}-bit values do not fill whole words")
    runs = values.reshape(rows // _WORD, _WORD, columns)
    words = torch.zeros(rows // _WORD, bits, columns, dtype=torch.int64, device=values.device)
    for index in range(_WORD):
        word, shift = divmod(index * bits, _WORD)
        value = runs[:, index].to(torch.int64)
        words[:, word] |= value << shift
        if shift + bits > _WORD:
            words[:, word + 1] |= value >> (_WORD - shift)
    words &= 0xFFFFFFFF
    signed = torch.where(words > 0x7FFFFFFF, words - (1 << _WORD), words)
    return signed.to(torch.int32).reshape(-1, columns)


def pack_weight(weight: QuantizedWeight, *, zero_offset: int) -> dict[str, Tensor]:
    """The four tensors of one matrix (out, in), by suffix.

    Args:
        weight: codes, in the order of the layer's input channels.
        zero_offset: 1 writes `checkpoint_format: gptq`, which stores zero points minus one;
            0 writes `gptq_v2`, which stores them as they are.

    Raises:
        ValueError: a zero point of 0 in the older format, which cannot hold it.
    """
    bits = weight.spec.bits
    zeros = weight.zero_points().to(torch.int16) - zero_offset
    if zeros.min() < 0:
        raise ValueError("a zero point of 0 has no place in the first version of the format")
    return {
        "qweight": pack_rows(weight.codes.T, bits).contiguous(),
        "qzeros": pack_rows(zeros, bits).T.contiguous(),
        "scales": weight.scales.T.contiguous(),
        "g_idx": weight.group_index.to(torch.int32),
    }
