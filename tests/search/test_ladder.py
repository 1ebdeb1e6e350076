"""The ladder on made-up trade-offs: never over the bound, near the best, few measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asvd_q.search.allocation import Allocation, LossBound, allocate
from asvd_q.search.candidates import Candidate
from asvd_q.search.ladder import MeasuredAllocation, smallest_within

CANDIDATES = {
    f"layer{index}": [
        Candidate(None, 10_000, 20_000, 0.0),
        *(
            Candidate(rank, 100 * rank, 200 * rank, 0.0004 * (1 + index) * (100 - rank) ** 1.5 / 50)
            for rank in range(95, 0, -5)
        ),
    ]
    for index in range(12)
}
DENSE = allocate(CANDIDATES, target=LossBound(0.0), method="optimal")
MOST = sum(forms[-1].loss for forms in CANDIDATES.values())


def solve(limit: float) -> Allocation:
    return allocate(CANDIDATES, target=LossBound(limit), method="optimal")


@cache
def trade_off() -> list[Allocation]:
    """Allocations from dense to smallest, finely."""
    return [solve(MOST * (step / 300) ** 2) for step in range(301)]


class Meter:
    """Measures by a formula, and counts."""

    def __init__(self, formula: Callable[[Allocation], float]) -> None:
        self.formula = formula
        self.calls: list[int] = []

    def __call__(self, allocations: Sequence[Allocation]) -> list[float]:
        assert all(allocation.ranks for allocation in allocations)
        self.calls.append(len(allocations))
        return [self.formula(allocation) for allocation in allocations]


def climb(
    bound: float, formula: Callable[[Allocation], float]
) -> tuple[MeasuredAllocation, list[MeasuredAllocation], Meter]:
    meter = Meter(formula)
    best, seen = smallest_within(bound, DENSE, solve, meter)
    assert len(seen) == sum(meter.calls)
    assert len(meter.calls) <= 3
    assert max(meter.calls) <= 4
    assert best.loss <= bound
    sizes = [one.allocation.bytes for one in seen]
    assert sizes == sorted(sizes, reverse=True)
    for one in seen:
        assert one.loss == formula(one.allocation)
        assert one.loss > bound or one.allocation.bytes >= best.allocation.bytes
    return best, seen, meter


@pytest.mark.parametrize("bound", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("ratio", [0.3, 0.7, 1.0, 1.6, 3.0])
@pytest.mark.parametrize("power", [0.8, 1.0, 1.3])
def test_close_to_the_best_of_all(bound: float, ratio: float, power: float) -> None:
    def formula(allocation: Allocation) -> float:
        return ratio * allocation.loss**power

    best, _, _ = climb(bound, formula)
    allowed = [one for one in trade_off() if formula(one) <= bound]
    smallest = min(allowed, key=lambda one: one.bytes)
    saved, possible = DENSE.bytes - best.allocation.bytes, DENSE.bytes - smallest.bytes
    assert saved >= 0.97 * possible


@pytest.mark.parametrize("ratio", [1e-3, 1e-2, 30.0])
def test_predictions_that_are_far_off_still_lead_somewhere(ratio: float) -> None:
    best, _, _ = climb(0.05, lambda allocation: ratio * allocation.loss)
    assert best.loss > 0.02 or best.allocation.loss == pytest.approx(MOST)


def test_what_meets_the_bound_at_its_smallest_is_taken() -> None:
    best, _, _ = climb(1.0, lambda allocation: 0.0)
    assert best.allocation.bytes == sum(forms[-1].bytes for forms in CANDIDATES.values())


def test_dense_where_everything_loses_too_much() -> None:
    best, seen, _ = climb(0.01, lambda allocation: 5.0)
    assert best.allocation is DENSE
    assert best.loss == 0
    assert all(one.loss > 0.01 for one in seen)


def test_gains_are_allowed() -> None:
    best, _, _ = climb(0.02, lambda allocation: allocation.loss - 0.03)
    assert 0.03 < best.allocation.loss <= 0.05


@given(st.floats(0.001, 2.0), st.floats(0.05, 10), st.floats(0, 0.5), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_noise_never_leads_over_the_bound(
    bound: float, ratio: float, noise: float, seed: int
) -> None:
    def formula(allocation: Allocation) -> float:
        wave = math.sin(seed + allocation.bytes)
        return ratio * allocation.loss * (1 + noise * wave)

    climb(bound, formula)


def test_nothing_to_measure_where_nothing_can_be_truncated() -> None:
    dense = {"layer": [Candidate(None, 100, 200, 0.0)]}
    only = allocate(dense, target=LossBound(1.0), method="optimal")
    best, seen = smallest_within(
        0.1,
        only,
        lambda limit: allocate(dense, target=LossBound(limit), method="strs"),
        Meter(lambda one: 0.0),
    )
    assert best.allocation is only
    assert seen == []
