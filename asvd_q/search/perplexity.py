"""The target `perplexity`: the smallest model that is measured to stay under it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from asvd_q.errors import RankError
from asvd_q.search.allocation import Allocation, LossBound, allocate
from asvd_q.search.candidates import Candidate
from asvd_q.search.context import SearchContext
from asvd_q.search.ladder import smallest_within
from asvd_q.search.measurements import measured
from asvd_q.search.verification import Verification, perplexity

__all__ = ["perplexity_bound", "search_perplexity"]


def perplexity_bound(context: SearchContext, smallest: Mapping[str, int]) -> float:
    """The increase of the next-token loss that the target allows, nats per token.

    Args:
        smallest: layer → rank, every layer at its smallest form; for the message.

    Raises:
        RankError: the target is not above the dense model's perplexity.
    """
    rise, wanted = context.search.perplexity_rise, context.search.perplexity
    if rise is not None:
        return math.log1p(rise)
    assert isinstance(wanted, float)
    dense = measured(context, [{}], "perplexity")[0].dense
    bound = math.log(wanted) - dense
    if bound > 0:
        return bound
    least = dense + measured(context, [smallest], "perplexity")[0].loss
    raise RankError(
        f"search.perplexity: {wanted:g} cannot be reached: on the calibration tokens the dense "
        f"model has {perplexity(dense):.4f}, and the smallest ranks on offer have "
        f"{perplexity(least):.4f}; give a number in between, or a rise such as '+2 %'"
    )


def search_perplexity(
    context: SearchContext, candidates: Mapping[str, Sequence[Candidate]], bound: float
) -> Verification:
    """The smallest of the allocations that are measured to lose no more than the bound.

    Raises:
        RecipeError: nothing may be run, and a measurement is missing.
    """

    def solve(limit: float) -> Allocation:
        return allocate(candidates, target=LossBound(limit), method=context.search.method)

    def measure(allocations: Sequence[Allocation]) -> list[float]:
        choices = [allocation.ranks for allocation in allocations]
        return [found.loss for found in measured(context, choices, "perplexity")]

    chosen, seen = smallest_within(bound, _dense(candidates), solve, measure)
    return Verification(
        "perplexity",
        measured(context, [{}], "perplexity")[0].dense,
        chosen,
        tuple(one for one in seen if one is not chosen),
    )


def _dense(candidates: Mapping[str, Sequence[Candidate]]) -> Allocation:
    """The choice that changes nothing."""
    chosen = {name: forms[0] for name, forms in candidates.items()}
    return Allocation(
        chosen=chosen,
        parameters=sum(candidate.parameters for candidate in chosen.values()),
        bytes=sum(candidate.bytes for candidate in chosen.values()),
        loss=0.0,
        slack=0.0,
        step=None,
    )
