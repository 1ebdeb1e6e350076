"""Prompts of different lengths in one batch: padding goes to the left, so that all end together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["pad_left", "positions_behind"]

_PADDING = 0
"""Any token that every vocabulary has: nothing attends to it."""


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one batch.

    Returns:
        Tokens and attention mask, both int64 (rows, length of the longest); the mask is 0 for
        padding.
    """
    length = max(map(len, rows))
    tokens = torch.full((len(rows), length), _PADDING)
    mask = torch.zeros_like(tokens)
    for index, row in enumerate(rows):
        start = length - len(row)
        tokens[index, start:] = torch.tensor(row)
        mask[index, start:] = 1
    return tokens, mask


def positions_behind(attention_mask: Tensor) -> Tensor:
    """Place of every token in its own row, int64 (batch, tokens); 0 for padding on the left."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)
