"""What `GroupQueryAttention` has to know of the mask, in few nodes: in a small model each counts.

The operator expects sequences that begin at the first column. Padding may follow: later tokens are
written over it. Padding that goes before is counted as text and hidden by a bias; finite, so that
a row of padding stays finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor

__all__ = ["Lengths", "lengths"]


@dataclass(frozen=True)
class Lengths:
    """Inputs of the operator.

    Attributes:
        last: index of each sequence's last token (batch,), int32.
        total: number of columns (1,), int32.
        bias: added to the scores (batch, 1, new tokens, columns).
    """

    last: Tensor
    total: Tensor
    bias: Tensor


def lengths(input_ids: Tensor, attention_mask: Tensor, dtype: torch.dtype) -> Lengths:
    """Of new tokens (batch, new) and a mask (batch, columns), 0 where a sequence is padded."""
    batch, columns = attention_mask.shape
    new = input_ids.shape[1]
    before = attention_mask.cumsum(dim=1) == 0
    last = (torch.where(before, 1, attention_mask).sum(dim=1) - 1).to(torch.int32)
    lowest = torch.full((), torch.finfo(dtype).min / 2, dtype=dtype)
    hidden = torch.where(before, lowest, torch.zeros((), dtype=dtype))[:, None, None, :]
    one = torch.ones((1,), dtype=torch.int64)
    target = torch.cat((one, one, _length(input_ids), one))
    return Lengths(
        last,
        _op("Cast", (_length(attention_mask),), torch.int32, (1,), to=onnx.TensorProto.INT32),
        _op("Expand", (hidden, target), dtype, (batch, 1, new, columns)),
    )


def _length(tokens: Tensor) -> Tensor:
    """Number of columns, as a tensor of one element."""
    return _op("Shape", (tokens,), torch.int64, (1,), start=1, end=2)


def _op(
    name: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, shape: Any, **attributes: int
) -> Tensor:
    return torch.onnx.ops.symbolic(name, inputs, {**attributes}, dtype=dtype, shape=shape)
