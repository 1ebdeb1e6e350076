"""Numbers of a few bits, packed without gaps into words of 32."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["unpack_bits", "words_for"]

_WORD = 32


def words_for(count: int, bits: int) -> int:
    """Words that `count` numbers fill."""
    return -(-count * bits // _WORD)


def unpack_bits(words: Tensor, bits: int, count: int) -> Tensor:
    """Undo the packing along the first dimension.

    Args:
        words: int32 (⌈count · bits / 32⌉, columns). The low bits come first, and a number may
            begin in one word and end in the next.
        bits: 1 to 8.

    Returns:
        uint8 (count, columns).
    """
    missing = -words.shape[0] % bits
    padded = torch.nn.functional.pad(words, (0, 0, 0, missing))
    turns = padded.reshape(-1, bits, words.shape[1])  # 32 numbers fill `bits` words
    values = torch.empty(turns.shape[0], _WORD, words.shape[1], dtype=torch.uint8)
    for index in range(_WORD):
        word, shift = divmod(index * bits, _WORD)
        found = turns[:, word] >> shift
        if shift + bits > _WORD:
            low = _WORD - shift
            found = (found & ((1 << low) - 1)) | (turns[:, word + 1] << low)
        values[:, index] = found & ((1 << bits) - 1)  # also what the sign was shifted into
    return values.reshape(-1, words.shape[1])[:count]
