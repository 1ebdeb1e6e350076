"""The module that stands in for a linear layer whose weight is dequantized by a node of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asvd_q_exporters.onnx.placeholders import placeholder
from asvd_q_exporters.onnx.qdq.layout import QdqLayout

__all__ = ["QdqLinear"]


class QdqLinear(nn.Module):
    """y = x Wᵀ + bias with W as integer codes: `DequantizeLinear`, then `MatMul`.

    The tracer has no types of 4 bits: such codes are traced as 8, and their initializers become
    what they are when they get their values.
    """

    def __init__(self, layout: QdqLayout, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.layout = layout
        traced = torch.uint8 if layout.zero_points else torch.int8
        self.codes = placeholder(layout.codes_shape, traced)
        self.scales = placeholder(layout.scales_shape, dtype)
        self.zero_points = placeholder(layout.scales_shape, traced) if layout.zero_points else None
        self.bias = placeholder((layout.rows,), dtype) if bias else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`DequantizeLinear`, `MatMul`, and the bias."""
        inputs = [self.codes, self.scales]
        if self.zero_points is not None:
            inputs.append(self.zero_points)
        weight = torch.onnx.ops.symbolic(
            "DequantizeLinear",
            inputs,
            {**self.layout.attributes},
            dtype=hidden_states.dtype,
            shape=self.layout.codes_shape,
        )
        output = torch.matmul(hidden_states, weight)
        return output if self.bias is None else output + self.bias
