"""The forms of all layers that meet a target. Nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from asvd_q.budget.contest import Tried, stored, undominated
from asvd_q.budget.counting import Count
from asvd_q.budget.sweep import LayerTried
from asvd_q.budget.timing import KernelTimes
from asvd_q.plan import LayerPlan, Plan
from asvd_q.recipe import BudgetSection
from asvd_q.search.allocation import Allocation, Budget, LossBound, Target, allocate
from asvd_q.search.candidates import Candidate

__all__ = ["Choice", "Offering", "choose", "is_within", "make_target"]

_SECOND = 10**9
"""In nanoseconds."""


@dataclass(frozen=True)
class Offering:
    """What there is to choose from.

    Attributes:
        base: every layer in floating point, and what no layer plan covers.
        candidates: by layer, in falling cost, none beaten in both cost and loss. The cost is that
            of the budget: nanoseconds where there are times, else bytes.
        count: whose bytes the candidates have.
        times: that the budget is spent by; None where it is spent by bytes.
    """

    base: Plan
    candidates: Mapping[str, Sequence[Candidate]]
    count: Count
    times: KernelTimes | None = None

    @classmethod
    def of(
        cls,
        base: Plan,
        tried: Mapping[str, LayerTried],
        count: Count,
        pinned: Mapping[str, LayerPlan],
        times: KernelTimes | None = None,
    ) -> Offering:
        """
        Args:
            tried: of each layer. One without trials, because no token reaches it, stays as it is.
            pinned: layers that have but one form to offer.
        """
        cost = stored if times is None else times.cost
        candidates: dict[str, tuple[Candidate, ...]] = {}
        for layer in base:
            fixed = pinned.get(layer.name)
            own = tried.get(layer.name, LayerTried()).tried
            found = [] if fixed is not None else undominated(own, cost)
            candidates[layer.name] = tuple(
                _candidate(offer.layer, offer.bytes, loss, times) for offer, loss in found
            ) or (_only(fixed or layer, own, count, times),)
        return cls(base, candidates, count, times)

    @property
    def fixed_bytes(self) -> int:
        """Bytes of what there is nothing to choose about."""
        return self.count.of_rest(self.base)

    @property
    def fixed_nanoseconds(self) -> int:
        """Time of the linear layers that there is nothing to choose about."""
        return 0 if self.times is None else self.times.head

    @property
    def weights(self) -> int:
        """Weights of all layers, as they are in the dense model."""
        return self.base.weights


@dataclass(frozen=True)
class Choice:
    """One form for every layer.

    Attributes:
        plan: the whole model.
        allocation: which candidates it is made of.
        total_bytes: of the whole model, in the format's count.
    """

    plan: Plan
    allocation: Allocation
    total_bytes: int

    @property
    def layer_bytes(self) -> int:
        """Of all layers, in the format's count."""
        return self.allocation.bytes

    @property
    def loss(self) -> float:
        """Sum of the predicted increases, nats per token."""
        return self.allocation.loss

    @property
    def bits_per_weight(self) -> float:
        """Of the layers in the format's count, over the weights that they had before."""
        return 8 * self.layer_bytes / self.plan.weights


def choose(offering: Offering, target: Target) -> Choice:
    """Solve the choice exactly, on the premise that losses add up.

    Raises:
        RankError: no choice meets the target; the message gives the range that can be reached.
    """
    allocation = allocate(offering.candidates, target=target, method="optimal")
    layers = {
        name: candidate.layer
        for name, candidate in allocation.chosen.items()
        if candidate.layer is not None
    }
    return Choice(
        plan=offering.base.with_layers(layers),
        allocation=allocation,
        total_bytes=allocation.bytes + offering.fixed_bytes,
    )


def make_target(budget: BudgetSection, offering: Offering) -> Target:
    """A recipe's target as what the layers may take together, or lose.

    Args:
        budget: of any target but a perplexity, which has to be measured.
    """
    if budget.max_loss_increase is not None:
        return LossBound(budget.max_loss_increase, unit="bytes")
    if budget.bits_per_weight is not None:
        weights = offering.weights
        return Budget(
            "bytes",
            budget.bits_per_weight * weights / 8,
            lambda amount: f"{8 * amount / weights:.4f} bits per weight",
        )
    if budget.decode_speed is not None:
        rest = offering.fixed_nanoseconds
        return Budget("nanoseconds", _SECOND / budget.decode_speed - rest, _speed_in_words(rest))
    assert budget.size_bytes is not None
    fixed = offering.fixed_bytes
    return Budget("bytes", budget.size_bytes - fixed, _size_in_words(fixed))


def is_within(
    budget: BudgetSection, count: Count, plan: Plan, times: KernelTimes | None = None
) -> bool:
    """Whether a whole plan stays within a recipe's budget, where that is not one of loss.

    Args:
        times: that a budget of time is spent by.
    """
    total = count.of_plan(plan)
    if total is None:
        return False
    if budget.bits_per_weight is not None:
        return 8 * (total - count.of_rest(plan)) <= budget.bits_per_weight * plan.weights
    if budget.decode_speed is not None:
        assert times is not None
        return times.total(plan) * budget.decode_speed <= _SECOND
    return budget.size_bytes is None or total <= budget.size_bytes


def _candidate(layer: LayerPlan, size: int, loss: float, times: KernelTimes | None) -> Candidate:
    nanoseconds = 0 if times is None else times.nanoseconds(layer)
    return Candidate(layer.rank, layer.parameters, size, loss, layer, nanoseconds)


def _only(
    layer: LayerPlan, tried: Sequence[Tried], count: Count, times: KernelTimes | None
) -> Candidate:
    """The one form that is left to a layer; its loss is that of the closest that was tried.

    Factors in floating point lose what those of their rank do in their best codes.
    """
    same = [loss for offer, loss in tried if offer.layer.quantization == layer.quantization]
    if layer.form == "factors" and not same:
        same = [loss for offer, loss in tried if offer.layer.rank == layer.rank]
    size = count.of_layer(layer)
    return _candidate(
        layer, layer.predicted_bytes if size is None else size, min(same, default=0.0), times
    )


def _size_in_words(fixed: int) -> Callable[[float], str]:
    return lambda amount: f"{(amount + fixed) / 2**20:.2f} MiB for the whole model"


def _speed_in_words(fixed: int) -> Callable[[float], str]:
    return lambda amount: f"{_SECOND / (amount + fixed):.1f} tokens per second"
