"""The module that stands in for a linear layer whose weight is NF4."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asvd_q_exporters.onnx.bnb4.layout import Bnb4Layout
from asvd_q_exporters.onnx.placeholders import placeholder

__all__ = ["Bnb4Linear"]


class Bnb4Linear(nn.Module):
    """y = x Wᵀ + bias with W as NF4 codes: one `MatMulBnb4`, in float32 whatever x is."""

    def __init__(self, layout: Bnb4Layout, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.layout = layout
        self.packed = placeholder(layout.packed_shape, torch.uint8)
        self.absmax = placeholder(layout.absmax_shape, torch.float32)
        self.bias = placeholder((layout.rows,), dtype) if bias else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """One `MatMulBnb4`, in float32, and the bias."""
        output = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulBnb4",
            (hidden_states.float(), self.packed, self.absmax),
            {**self.layout.attributes},
            dtype=torch.float32,
            shape=(*hidden_states.shape[:-1], self.layout.rows),
            version=1,
        ).to(hidden_states.dtype)
        return output if self.bias is None else output + self.bias
