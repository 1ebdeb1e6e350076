"""The forms that each layer may take, with what each costs and is predicted to lose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from asvd_q.errors import NumericsError, RankError
from asvd_q.models.refs import WeightRef
from asvd_q.plan import LayerPlan, factor_parameters
from asvd_q.search.uniform import break_even_rank

__all__ = ["DEFAULT_RATIOS", "Candidate", "make_candidates", "monotone_losses", "ratio_ranks"]

DEFAULT_RATIOS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Kept ratios (parameters after / before) at which the paper measures every layer."""


@dataclass(frozen=True)
class Candidate:
    """One form of a layer.

    Attributes:
        rank: of the factors; None is the dense layer.
        parameters: weights stored, the bias left out.
        bytes: stored, in the count of whatever format the caller allocates for.
        loss: predicted increase of the mean next-token loss, nats per token; 0 when dense. In a
            search for ranks of the truncation alone, without what quantization costs.
        layer: the form with its codes, where they are chosen too; None in a search for ranks.
        nanoseconds: that one decoded token spends in it, where times are chosen by; else 0.
    """

    rank: int | None
    parameters: int
    bytes: int
    loss: float
    layer: LayerPlan | None = None
    nanoseconds: int = 0


def ratio_ranks(
    shape: tuple[int, int],
    ratios: Iterable[float] = DEFAULT_RATIOS,
    rank_multiple: int = 32,
) -> list[int]:
    """The distinct ranks, ascending, that a grid of kept ratios comes to.

    Every rank is rounded to the nearest multiple, is at least one multiple, and has fewer
    parameters than the layer. Ratios of 1 and more mean dense and give no rank.

    Args:
        shape: (out, in).
        ratios: parameters of the factors / of the layer, above 0.
        rank_multiple: that the target runtime's kernels want.

    Returns:
        Nothing for a layer so small that one multiple saves nothing.

    Raises:
        RankError: a ratio that is not above 0.
    """
    break_even = break_even_rank(shape)
    most = (math.ceil(break_even) - 1) // rank_multiple
    ranks: set[int] = set()
    for ratio in ratios:
        if not ratio > 0:
            raise RankError(f"kept ratio {ratio} is not possible: give ratios between 0 and 1")
        if ratio < 1 and most >= 1:
            nearest = math.floor(ratio * break_even / rank_multiple + 0.5)
            ranks.add(min(max(nearest, 1), most) * rank_multiple)
    return sorted(ranks)


def monotone_losses(losses: Mapping[int, float]) -> dict[int, float]:
    """Losses that never fall as the rank falls, and are never below 0.

    A measured gain from truncation is noise of the calibration text: an optimiser would buy it.
    The running maximum from high to low rank is the smallest monotone curve that is nowhere
    below what was measured.

    Args:
        losses: rank → predicted loss increase, nats per token.

    Returns:
        Rank → loss, ranks descending.
    """
    highest = 0.0
    result: dict[int, float] = {}
    for rank in sorted(losses, reverse=True):
        highest = max(highest, losses[rank])
        result[rank] = highest
    return result


def make_candidates(
    weight: WeightRef,
    losses: Mapping[int, float],
    dense_bytes: int,
    bytes_of: Callable[[int], int],
) -> tuple[Candidate, ...]:
    """Dense first, then every rank worth offering, in descending order.

    Offered is what saves both parameters and bytes and is not dominated: no other rank costs no
    more in both and loses no more. Dense is always offered.

    Args:
        weight: the layer.
        losses: rank → predicted loss increase, nats per token, as measured.
        dense_bytes: stored bytes of the layer left dense (quantized, where the recipe does so).
        bytes_of: stored bytes of the factors of a rank.

    Raises:
        RankError: a rank outside 1 … min(out, in).
        NumericsError: NaN or infinity among the losses.
    """
    rows, columns = weight.shape
    for rank, loss in losses.items():
        if not 1 <= rank <= min(weight.shape):
            raise RankError(
                f"{weight.name}: rank {rank} is outside 1 … {min(weight.shape)}, "
                f"the smaller side of its shape {weight.shape}"
            )
        if not math.isfinite(loss):
            raise NumericsError(f"{weight.name}: the predicted loss at rank {rank} is {loss}")
    dense = Candidate(None, rows * columns, dense_bytes, 0.0)
    saving = [
        candidate
        for candidate in (
            Candidate(rank, factor_parameters(weight.shape, rank), bytes_of(rank), loss)
            for rank, loss in monotone_losses(losses).items()
        )
        if candidate.parameters < dense.parameters and candidate.bytes < dense.bytes
    ]
    return (dense, *(one for one in saving if not _dominated(one, saving)))


def _dominated(one: Candidate, others: Sequence[Candidate]) -> bool:
    # Ranks differ, so parameters do: nothing dominates its own equal.
    return any(
        other.rank != one.rank
        and other.parameters <= one.parameters
        and other.bytes <= one.bytes
        and other.loss <= one.loss
        for other in others
    )
