"""The module that stands in for a linear layer whose weight is integer codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asvd_q_exporters.onnx.nbits.layout import NBitsLayout
from asvd_q_exporters.onnx.placeholders import placeholder

__all__ = ["NBitsLinear"]


class NBitsLinear(nn.Module):
    """y = x Wᵀ + bias with W as integer codes: one `MatMulNBits`."""

    def __init__(
        self, layout: NBitsLayout, bias: bool, dtype: torch.dtype, accuracy_level: int
    ) -> None:
        super().__init__()
        self.layout = layout
        self.accuracy_level = accuracy_level
        self.codes = placeholder(layout.codes_shape, torch.uint8)
        self.scales = placeholder(layout.scales_shape, dtype)
        self.zero_points = (
            placeholder(layout.zero_points_shape, torch.uint8) if layout.zero_points else None
        )
        self.bias = placeholder((layout.rows,), dtype) if bias else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """One `MatMulNBits`, which adds the bias too."""
        inputs: list[Tensor | None] = [hidden_states, self.codes, self.scales]
        if self.bias is not None:
            inputs += [self.zero_points, None, self.bias]
        elif self.zero_points is not None:
            inputs.append(self.zero_points)
        output: Tensor = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            inputs,
            {**self.layout.attributes(self.accuracy_level)},
            dtype=hidden_states.dtype,
            shape=(*hidden_states.shape[:-1], self.layout.rows),
            version=1,
        )
        return output
