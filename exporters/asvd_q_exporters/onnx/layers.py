"""Modules that stand in for linear layers while the model is traced.

Their weights are placeholders without memory. Names and shapes are those of the file's
initializers. Those for quantized matrices are in their operators' folders.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from asvd_q.plan import LayerPlan, QuantSpec
from asvd_q_exporters.onnx.operators import Operator
from asvd_q_exporters.onnx.placeholders import placeholder

__all__ = ["Corrected", "FloatLinear", "LowRank", "TiedHead", "stand_in"]


class FloatLinear(nn.Module):
    """y = x Wᵀ + bias with W stored as (in, out), so that the graph transposes no weight."""

    def __init__(self, shape: tuple[int, int], bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = placeholder((shape[1], shape[0]), dtype)
        self.bias = placeholder((shape[0],), dtype) if bias else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Outputs (…, out) of inputs (…, in)."""
        output = torch.matmul(hidden_states, self.weight)
        return output if self.bias is None else output + self.bias


class LowRank(nn.Module):
    """y = A (B x) + bias, under the names of the store's slots."""

    def __init__(self, b: nn.Module, a: nn.Module) -> None:
        super().__init__()
        self.BLinear = b
        self.ALinear = a

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Outputs (…, out) of inputs (…, in)."""
        output: Tensor = self.ALinear(self.BLinear(hidden_states))
        return output


class Corrected(nn.Module):
    """y = Q x + A (B x) + bias, where A B makes up for what the codes of Q lost."""

    def __init__(
        self, weight: nn.Module, b: nn.Module, a: nn.Module, bias: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.weight = weight
        self.BLinear = b
        self.ALinear = a
        self.bias = bias

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Outputs (…, out) of inputs (…, in)."""
        output: Tensor = self.weight(hidden_states) + self.ALinear(self.BLinear(hidden_states))
        return output if self.bias is None else output + self.bias


class TiedHead(nn.Module):
    """The output head that shares the embedding's matrix (vocabulary, hidden).

    `Gemm` reads it transposed in place, so the file holds it once.
    """

    def __init__(self, embedding: nn.Parameter, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight = embedding
        self.bias = bias

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary) of hidden states (batch, tokens, hidden)."""
        batch, tokens, hidden = hidden_states.shape
        logits: Tensor = torch.onnx.ops.symbolic(
            "Gemm",
            (hidden_states.reshape(-1, hidden), self.weight),
            {"transB": 1},
            dtype=hidden_states.dtype,
            shape=(batch * tokens, self.weight.shape[0]),
        )
        logits = logits.reshape(batch, tokens, self.weight.shape[0])
        return logits if self.bias is None else logits + self.bias


def stand_in(
    layer: LayerPlan,
    bias: bool,
    dtype: torch.dtype,
    accuracy_level: int,
    operators: Mapping[str, Operator],
) -> nn.Module:
    """The module for one stored layer; the bias is added once, last."""

    def matrix(shape: tuple[int, int], spec: QuantSpec | None, bias: bool) -> nn.Module:
        if spec is None:
            return FloatLinear(shape, bias, dtype)
        return operators[spec.method].linear(
            shape, spec, bias=bias, dtype=dtype, accuracy_level=accuracy_level
        )

    shapes, specs = layer.slot_shapes(), layer.quantization
    if layer.form == "dense":
        return matrix(shapes["weight"], specs["weight"], bias)
    b = matrix(shapes["B"], specs["B"], False)
    if layer.form == "factors":
        return LowRank(b, matrix(shapes["A"], specs["A"], bias))
    return Corrected(
        matrix(shapes["weight"], specs["weight"], False),
        b,
        matrix(shapes["A"], specs["A"], False),
        placeholder((layer.shape[0],), dtype) if bias else None,
    )
