"""What was predicted of an allocation beside what is measured of it, all its layers truncated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asvd_q.recipe import SearchSection
from asvd_q.search.allocation import Allocation, Budget, Method, Unit, allocate
from asvd_q.search.candidates import Candidate
from asvd_q.search.context import SearchContext
from asvd_q.search.ladder import MeasuredAllocation
from asvd_q.search.measurements import Measurement, known_measurements, measured
from asvd_q.search.scoring import Metric

__all__ = ["Verification", "allocations_around", "metric_of", "perplexity", "verified"]

_SHARES = (0.25, 0.5, 0.75, 1.25, 1.5)
"""Of what an allocation saves: how much those save that are measured beside it."""


@dataclass(frozen=True)
class Verification:
    """Measurements on the calibration tokens.

    Attributes:
        metric: whether losses are increases of the next-token loss, or divergences.
        dense: mean next-token loss of the dense model, nats; 0 with `metric: kl`.
        chosen: the allocation that the search ends with.
        others: further ones along the trade-off, by falling bytes.
    """

    metric: Metric
    dense: float
    chosen: MeasuredAllocation
    others: tuple[MeasuredAllocation, ...]

    @property
    def perplexities(self) -> tuple[float, float] | None:
        """Of the dense model and of the chosen allocation, where they were measured."""
        if self.metric == "kl":
            return None
        return perplexity(self.dense), perplexity(self.dense + self.chosen.loss)


def perplexity(loss: float) -> float:
    """Of a mean next-token loss in nats; infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def metric_of(search: SearchSection) -> Metric:
    """What to measure: what the sensitivities predict, and perplexity where that is no loss."""
    if search.perplexity is not None or not search.predicts_loss:
        return "perplexity"
    if search.sensitivity == "exact":
        return search.metric
    return "perplexity" if search.labels == "corpus" else "kl"


def allocations_around(
    candidates: Mapping[str, Sequence[Candidate]],
    allocation: Allocation,
    unit: Unit,
    method: Method,
) -> list[Allocation]:
    """Allocations that save more and less than a given one, each different, by falling size."""

    def cost_of(form: Candidate) -> int:
        return form.parameters if unit == "parameters" else form.bytes

    dense = sum(cost_of(forms[0]) for forms in candidates.values())
    least = sum(min(map(cost_of, forms)) for forms in candidates.values())
    saved = dense - sum(map(cost_of, allocation.chosen.values()))
    found: list[Allocation] = []
    for share in _SHARES:
        budget = Budget(unit, max(dense - share * saved, least))
        other = allocate(candidates, target=budget, method=method)
        if other.ranks and all(other.ranks != one.ranks for one in (allocation, *found)):
            found.append(other)
    return found


def verified(
    context: SearchContext, chosen: Allocation, others: Sequence[Allocation]
) -> Verification | None:
    """Measure allocations together; where nothing may be run, what is known of them.

    Returns:
        None where nothing may be run, and the chosen allocation was not measured before.
    """
    metric = metric_of(context.search)
    choices = [{}, chosen.ranks, *(other.ranks for other in others)]
    found: Sequence[Measurement | None]
    if context.known_only:
        found = known_measurements(context, choices, metric)
    else:
        found = measured(context, choices, metric)
    dense, own, *rest = found
    if dense is None or own is None:
        return None
    return Verification(
        metric,
        dense.dense,
        MeasuredAllocation(chosen, own.loss),
        tuple(
            MeasuredAllocation(other, one.loss)
            for other, one in zip(others, rest, strict=True)
            if one is not None
        ),
    )
