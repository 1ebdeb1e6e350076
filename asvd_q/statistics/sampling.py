"""Tokens drawn from a model's own distribution."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["draw_tokens"]


def draw_tokens(logits: Tensor, numbers: Tensor) -> Tensor:
    """One token per row, by inverting the cumulated distribution in the logits' precision.

    Numbers that were drawn on the CPU give the same tokens on every device.

    Args:
        logits: (rows, vocabulary), floating point.
        numbers: in [0, 1), (rows,), of the same type.

    Returns:
        int64 (rows,).
    """
    cumulated = logits.softmax(-1).cumsum(-1)
    target = numbers.to(logits.device)[:, None] * cumulated[:, -1:]
    drawn = torch.searchsorted(cumulated, target, right=True).squeeze(-1)
    return drawn.clamp(max=logits.shape[-1] - 1)
