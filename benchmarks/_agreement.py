"""How well two sweeps agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Difference", "Losses", "compare_losses", "rank_agreement", "spearman"]

Losses = Mapping[str, Mapping[int, float]]
"""Layer → rank → nats per token."""


@dataclass(frozen=True)
class Difference:
    """Largest differences between two sweeps, over candidates.

    Attributes:
        candidates: how many were compared.
        loss: of the loss with the layer truncated, relative.
        increase: of the loss increase, relative; large where the increase is almost nothing.
        absolute: of either, nats per token.
    """

    candidates: int
    loss: float
    increase: float
    absolute: float


def compare_losses(increases: Losses, expected: Losses, dense: float) -> Difference:
    """Loss increases of one sweep against the losses of another.

    Args:
        expected: of the candidates to compare.
        dense: loss of the dense model.
    """
    pairs = [
        (increases[name][rank], loss)
        for name, losses in expected.items()
        for rank, loss in losses.items()
    ]
    errors = [(abs(dense + increase - loss), loss) for increase, loss in pairs]
    return Difference(
        candidates=len(pairs),
        loss=max(_relative(error, loss) for error, loss in errors),
        increase=max(_relative(error, abs(loss - dense)) for error, loss in errors),
        absolute=max(error for error, _ in errors),
    )


def _relative(error: float, scale: float) -> float:
    if scale == 0:
        return 0.0 if error == 0 else math.inf
    return error / scale


def rank_agreement(one: Losses, two: Losses) -> float:
    """Spearman's correlation over all candidates of `one`, which `two` has too."""
    pairs = [
        (loss, two[name][rank]) for name, losses in one.items() for rank, loss in losses.items()
    ]
    return spearman([first for first, _ in pairs], [second for _, second in pairs])


def spearman(one: Sequence[float], two: Sequence[float]) -> float:
    """Correlation of the ranks; equal values share the mean of theirs."""
    return float(np.corrcoef(_ranks(one), _ranks(two))[0, 1])


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return ranks
