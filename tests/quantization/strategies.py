"""Weights and settings that hypothesis draws from."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from asvd_q.plan import QuantSpec

KINDS = ["normal", "zero-rows", "constant-rows", "outliers", "positive", "tiny", "one-value"]


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Random and hard matrices (out, in) of every floating-point type a model comes in."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 300))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(rows, columns, generator=generator) * draw(st.sampled_from([0.02, 1, 30]))
    match draw(st.sampled_from(KINDS)):
        case "zero-rows":
            weight[::2] = 0
        case "constant-rows":
            weight[::2] = draw(st.sampled_from([-3.0, 0.1, 7.0]))
        case "outliers":
            weight[:, draw(st.integers(0, columns - 1))] *= 1000
        case "positive":
            weight = weight.abs() + 1
        case "tiny":
            weight *= 1e-7
        case "one-value":
            weight = torch.where(torch.rand(weight.shape, generator=generator) < 0.1, weight, 0)
    return weight.to(draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])))


@st.composite
def specs(draw: st.DrawFn) -> QuantSpec:
    return QuantSpec(
        bits=draw(st.integers(2, 8)),
        group_size=draw(st.sampled_from([-1, 16, 32, 100, 256])),
        symmetric=draw(st.booleans()),
        clip=draw(st.sampled_from(["minmax", "mse"])),
    )
