"""Parameters that are there for their shapes: a model of any size is traced without memory."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["placeholder"]


def placeholder(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    """A parameter of that shape which occupies one element."""
    return nn.Parameter(torch.zeros((), dtype=dtype).expand(shape), requires_grad=False)
