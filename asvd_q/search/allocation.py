"""One form for every layer, so that a target on the whole model is met. Nothing is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from asvd_q.errors import RankError
from asvd_q.search.candidates import Candidate
from asvd_q.search.knapsack import solve_knapsack
from asvd_q.search.strs import cut_at, search_cut

__all__ = ["Allocation", "Budget", "LossBound", "Method", "Target", "Unit", "allocate"]

Unit = Literal["parameters", "bytes", "nanoseconds"]
Method = Literal["strs", "optimal"]

_ROUNDING = 1e-12
"""Sums of losses are compared to this relative accuracy; whole numbers exactly."""


@dataclass(frozen=True)
class Budget:
    """The layers together may take this much, and lose as little as possible.

    Attributes:
        unit: what is counted.
        limit: of the layers that are allocated; what else is stored is already subtracted.
        describe: an amount in the words of whoever set the target, who may count a ratio, or
            bytes of the whole model; for messages.
    """

    unit: Unit
    limit: float
    describe: Callable[[float], str] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class LossBound:
    """The summed predicted loss stays below this, and the layers take as little as possible.

    Attributes:
        limit: nats per token; log(1.02) for "2 % more perplexity".
        unit: what is to be small.
        describe: a summed loss in the words of whoever set the target; for messages.
    """

    limit: float
    unit: Unit = "bytes"
    describe: Callable[[float], str] | None = field(default=None, compare=False)


Target = Budget | LossBound


@dataclass(frozen=True)
class Allocation:
    """What was chosen, and how close it comes to the target.

    Attributes:
        chosen: per layer, in the order in which the layers were given.
        parameters, bytes: of all layers together.
        loss: sum of the predicted losses, nats per token.
        slack: what the target would still allow, in its own unit, or nats.
        step: what the nearest candidate beyond the target takes, in the same unit; always more
            than the slack. None where nothing is left to take: all layers dense, or, under a
            bound on the loss, all at their smallest.
    """

    chosen: Mapping[str, Candidate]
    parameters: int
    bytes: int
    loss: float
    slack: float
    step: float | None

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every layer that is to be factorised."""
        return {name: form.rank for name, form in self.chosen.items() if form.rank is not None}


def allocate(
    candidates: Mapping[str, Sequence[Candidate]], *, target: Target, method: Method
) -> Allocation:
    """Choose a form for every layer so that the target is met, as closely as may be.

    Never over the target, and under it by less than one candidate's step.

    Args:
        candidates: per layer, dense first, as `make_candidates` returns them; or the one form that
            a layer is left with.
        target: a budget, or a bound on the loss.
        method: `strs` takes, as the paper does, one threshold of sensitivity for all layers.
            `optimal` takes the best of all choices, on the premise that losses add up; of
            choices that lose the same it takes the smallest, except that a budget's remainder
            goes to larger forms that are not predicted to lose more, in the order of the layers.

    Raises:
        RankError: no choice meets the target; the message gives the range that can be reached.
        ValueError: no layers, or a layer without candidates.
    """
    if not candidates or not all(candidates.values()):
        raise ValueError("there is nothing to allocate: every layer needs at least one candidate")
    cost_of = _counter(target.unit)
    _check_reachable(candidates, target, cost_of)
    solve = _strs if method == "strs" else _optimal
    chosen, step = solve(candidates, target, cost_of)
    loss = _loss(chosen.values())
    used: float = sum(map(cost_of, chosen.values())) if isinstance(target, Budget) else loss
    return Allocation(
        chosen=chosen,
        parameters=sum(candidate.parameters for candidate in chosen.values()),
        bytes=sum(candidate.bytes for candidate in chosen.values()),
        loss=loss,
        slack=max(target.limit - used, 0.0),
        step=step,
    )


CostOf = Callable[[Candidate], int]
_Choice = tuple[dict[str, Candidate], float | None]


def _counter(unit: Unit) -> CostOf:
    if unit == "parameters":
        return lambda candidate: candidate.parameters
    if unit == "nanoseconds":
        return lambda candidate: candidate.nanoseconds
    return lambda candidate: candidate.bytes


def _loss(chosen: Iterable[Candidate]) -> float:
    return math.fsum(candidate.loss for candidate in chosen)


def _allowed(target: Target) -> float:
    """The limit that sums are compared with."""
    return target.limit if isinstance(target, Budget) else target.limit * (1 + _ROUNDING)


def _measure(target: Target, cost_of: CostOf) -> Callable[[Candidate], float]:
    """What of a candidate counts against the target."""
    return cost_of if isinstance(target, Budget) else lambda candidate: candidate.loss


def _check_reachable(
    candidates: Mapping[str, Sequence[Candidate]], target: Target, cost_of: CostOf
) -> None:
    measure = _measure(target, cost_of)
    least = math.fsum(min(map(measure, forms)) for forms in candidates.values())
    if target.limit >= least:
        return
    if isinstance(target, Budget):
        most = math.fsum(measure(forms[0]) for forms in candidates.values())
    else:
        smallest = (min(forms, key=cost_of) for forms in candidates.values())
        most = math.fsum(map(measure, smallest))
    words = "nats per token" if isinstance(target, LossBound) else target.unit
    say = target.describe or (lambda amount: f"{amount:.6g} {words}")
    raise RankError(
        f"the target of {say(target.limit)} cannot be reached: what is on offer reaches from "
        f"{say(least)} to {say(most)}; change the target, or offer lower ranks or more layers"
    )


def _strs(
    candidates: Mapping[str, Sequence[Candidate]], target: Target, cost_of: CostOf
) -> _Choice:
    measure, allowed = _measure(target, cost_of), _allowed(target)
    budget = isinstance(target, Budget)

    def used(chosen: Mapping[str, Candidate]) -> float:
        return math.fsum(map(measure, chosen.values()))

    ranking, cut = search_cut(
        candidates, cost_of, lambda chosen: used(chosen) <= allowed, smallest=budget
    )
    chosen = cut_at(candidates, ranking, cut, cost_of)
    beyond = cut - 1 if budget else cut + 1
    if not 0 <= beyond <= len(ranking):
        return chosen, None
    return chosen, used(cut_at(candidates, ranking, beyond, cost_of)) - used(chosen)


def _optimal(
    candidates: Mapping[str, Sequence[Candidate]], target: Target, cost_of: CostOf
) -> _Choice:
    classes = [
        (
            np.array([cost_of(candidate) for candidate in forms], dtype=np.float64),
            np.array([candidate.loss for candidate in forms], dtype=np.float64),
        )
        for forms in candidates.values()
    ]
    limit = target.limit
    if isinstance(target, LossBound):
        smallest = solve_knapsack([(losses, costs) for costs, losses in classes], _allowed(target))
        # Layers of one shape make many choices equally small: below, the best of them is taken.
        limit = sum(float(costs[item]) for (costs, _), item in zip(classes, smallest, strict=True))
    items = solve_knapsack(classes, limit)
    chosen = {
        name: forms[item] for (name, forms), item in zip(candidates.items(), items, strict=True)
    }
    if isinstance(target, Budget):
        chosen = _spend(candidates, chosen, limit, cost_of)
    return chosen, _nearest(candidates, chosen, target, cost_of)


def _spend(
    candidates: Mapping[str, Sequence[Candidate]],
    chosen: Mapping[str, Candidate],
    limit: float,
    cost_of: CostOf,
) -> dict[str, Candidate]:
    """Give what a budget has left to larger forms that are predicted to lose no more.

    A loss of 0 often is a gain within the noise, set to 0: dense is the safer choice when it
    is paid for already.
    """
    result = dict(chosen)
    left = limit - sum(map(cost_of, chosen.values()))
    for name, forms in candidates.items():
        now = result[name]
        for form in sorted(forms, key=cost_of, reverse=True):
            more = cost_of(form) - cost_of(now)
            if 0 < more <= left and form.loss <= now.loss:
                result[name] = form
                left -= more
                break
    return result


def _nearest(
    candidates: Mapping[str, Sequence[Candidate]],
    chosen: Mapping[str, Candidate],
    target: Target,
    cost_of: CostOf,
) -> float | None:
    """The smallest change of one layer that would be an improvement and leaves the target."""
    steps: list[float] = []
    for name, forms in candidates.items():
        now = chosen[name]
        if isinstance(target, Budget):
            larger = (cost_of(form) - cost_of(now) for form in forms if form.loss <= now.loss)
            steps += [more for more in larger if more > 0]
        else:
            steps += [form.loss - now.loss for form in forms if cost_of(form) < cost_of(now)]
    return min(steps, default=None)
