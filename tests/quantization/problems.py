"""Weights with the Gram matrices of their inputs, and how well they were quantized."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asvd_q.plan import QuantSpec
from asvd_q.quantization import QuantizedWeight, quantize


def gptq(**settings: Any) -> QuantSpec:
    return QuantSpec.model_validate({"method": "gptq", "clip": "minmax"} | settings)


def made(weight: Tensor, spec: QuantSpec, gram: Tensor) -> QuantizedWeight:
    found = quantize(weight, spec, gram)
    assert isinstance(found, QuantizedWeight)
    return found


def problem(rows: int, columns: int, kind: str = "normal", seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight (out, in) and the Gram matrix of inputs whose channels are correlated."""
    generator = torch.Generator().manual_seed(seed)
    tokens = columns // 3 + 1 if kind == "rank-deficient" else 3 * columns
    mix = torch.randn(columns, columns, generator=generator).double() / columns**0.5
    inputs = torch.randn(tokens, columns, generator=generator).double() @ mix
    inputs += 0.5 * torch.randn(tokens, 1, generator=generator)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    match kind:
        case "dead":
            inputs[:, ::4] = 0
        case "outliers":
            inputs[:, 1] *= 1000
            weight[:, 2] *= 1000
        case "bfloat16":
            weight = weight.bfloat16()
        case "tiny":
            inputs *= 1e-12
    return weight, inputs.T @ inputs / tokens


def output_error(weight: Tensor, found: QuantizedWeight, gram: Tensor) -> float:
    error = weight.double() - found.dequantize().double()
    return float((error @ gram * error).sum())
