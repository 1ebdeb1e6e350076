"""The same mathematics again, in numpy and by other routes, to test against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asvd_q.statistics.collectors import SiteStatistics

Array = NDArray[np.float64]

SHAPES = [(24, 40), (40, 24), (32, 32), (1, 7), (7, 1), (3, 5), (1, 1)]
"""(out, in): wide, tall, square, and the tiny ones where a side is shorter than any habit."""


@dataclass(frozen=True)
class Case:
    """A weight, and activations (tokens, in) that reach it."""

    weight: Tensor
    inputs: Tensor

    @property
    def gram(self) -> Tensor:
        return (self.inputs.T @ self.inputs / len(self.inputs)).double()


def random_case(shape: tuple[int, int], seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    out_features, in_features = shape
    mixing = torch.randn(in_features, in_features, generator=generator, dtype=torch.float64)
    tokens = torch.randn(4 * in_features + 5, in_features, generator=generator).double()
    weight = torch.randn(out_features, in_features, generator=generator, dtype=torch.float64)
    return Case(weight=weight, inputs=tokens @ mixing)


def rank_deficient(case: Case) -> Case:
    """Half the rank, the rest exactly zero but for rounding."""
    out_features, in_features = case.weight.shape
    rank = max(min(out_features, in_features) // 2, 1)
    product = case.weight[:, :rank] @ case.weight[:rank]
    return Case(product, case.inputs)


def dead_channels(case: Case) -> Case:
    """No token ever excites every third channel: zero statistic, zero row of the Gram."""
    inputs = case.inputs.clone()
    inputs[:, 1::3] = 0
    return Case(case.weight, inputs)


def outlier_channels(case: Case) -> Case:
    """Two channels a thousand times as strong as the rest, as real models have them."""
    inputs = case.inputs.clone()
    inputs[:, 0] *= 1000
    inputs[:, -1] *= 1000
    return Case(case.weight, inputs)


def half_precision(case: Case) -> Case:
    return Case(case.weight.to(torch.bfloat16), case.inputs)


HARD: dict[str, Callable[[Case], Case]] = {
    "random": lambda case: case,
    "rank-deficient": rank_deficient,
    "dead": dead_channels,
    "outliers": outlier_channels,
    "bf16": half_precision,
}


def scaling_matrix(name: str, inputs: Array, alpha: float, damping: float) -> Array:
    """S as a full matrix, straight from the definitions, from the activations themselves."""
    features = inputs.shape[1]
    if name == "none":
        return np.eye(features)
    if name == "whitening":
        gram = np.cov(inputs, rowvar=False, bias=True).reshape(features, features)
        gram += np.outer(inputs.mean(0), inputs.mean(0))
        return np.linalg.cholesky(gram / gram.trace() * features + damping * np.eye(features))
    statistic = {
        "abs_mean": np.abs(inputs).mean(0),
        "abs_max": np.abs(inputs).max(0),
        "rms": np.sqrt((inputs**2).mean(0)),
    }[name]
    scale = (statistic + damping * statistic.mean()) ** alpha
    return np.diag(scale / np.sqrt((scale**2).mean()))


def truncated_svd(weight: Array, scale: Array, rank: int) -> tuple[Array, Array]:
    """Best approximation of W S of a rank, and all singular values of W S."""
    left, values, right = np.linalg.svd(weight @ scale, full_matrices=False)
    product: Array = (left[:, :rank] * values[:rank]) @ right[:rank]
    return product, values


def site_statistics(case: Case) -> SiteStatistics:
    """What a collector finds of a case's inputs."""
    magnitude = case.inputs.abs()
    return SiteStatistics(
        tokens=len(case.inputs),
        abs_mean=magnitude.mean(0),
        abs_max=magnitude.amax(0),
        gram=case.gram,
    )
