"""Norms are recognized by what they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asvd_q_exporters.onnx.fused.norms import RmsNorm, fuse_norms


class LlamaRMSNorm(nn.Module):
    """y = x / √(mean(x²) + ε) · w, as Llama writes it."""

    def __init__(self, width: int = 16, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = eps

    def scale(self) -> Tensor:
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        return self.scale() * (x * torch.rsqrt(mean + self.variance_epsilon))


class OffsetRMSNorm(LlamaRMSNorm):
    def scale(self) -> Tensor:
        return 1 + self.weight


class TwiceScaledRMSNorm(LlamaRMSNorm):
    def scale(self) -> Tensor:
        return self.weight * self.weight


class CentredRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


class OutsideTheRootRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon)


class NoEpsilonRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True))


class LeastRMSNorm(LlamaRMSNorm):
    """Differs for small inputs alone."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        return self.weight * x * torch.rsqrt(mean.clamp(min=self.variance_epsilon))


class BiasedRMSNorm(LlamaRMSNorm):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


class GatedRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * gate


class PairRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class HalfRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(torch.bfloat16)


class PlainNorm(LlamaRMSNorm):
    """Computes the right thing under a name that does not say so."""


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 1e-2])
@pytest.mark.parametrize(("kind", "offset"), [(LlamaRMSNorm, 0), (OffsetRMSNorm, 1)])
def test_a_norm_is_found_by_what_it_computes(
    kind: type[LlamaRMSNorm], offset: int, epsilon: float
) -> None:
    model = nn.Sequential(nn.Sequential(kind(16, epsilon)), kind(24, epsilon))
    parameters = dict(model.named_parameters())
    fuse_norms(model)
    fused = [model[0][0], model[1]]  # type: ignore[index]
    assert all(isinstance(norm, RmsNorm) for norm in fused)
    assert [(norm.epsilon, norm.offset) for norm in fused] == [(epsilon, offset)] * 2
    assert {name: id(one) for name, one in model.named_parameters()} == {
        name: id(one) for name, one in parameters.items()
    }


@pytest.mark.parametrize(
    "kind",
    [
        TwiceScaledRMSNorm,
        CentredRMSNorm,
        OutsideTheRootRMSNorm,
        NoEpsilonRMSNorm,
        LeastRMSNorm,
        BiasedRMSNorm,
        GatedRMSNorm,
        PairRMSNorm,
        HalfRMSNorm,
        PlainNorm,
    ],
)
def test_a_norm_that_computes_something_else_is_left_alone(kind: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(kind(), LlamaRMSNorm())
    before = model[0]
    fuse_norms(model)
    assert model[0] is before
    assert isinstance(model[1], RmsNorm)


def test_norms_of_one_class_and_another_epsilon_are_told_apart() -> None:
    model = nn.Sequential(LlamaRMSNorm(16, 1e-5), LlamaRMSNorm(16, 1e-3))
    fuse_norms(model)
    assert [norm.epsilon for norm in model] == [1e-5, 1e-3]
