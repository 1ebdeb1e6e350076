"""A bound on a measured loss is reached in few rounds, and never left."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from asvd_q.budget.measured import MOST_ROUNDS, next_limit

BOUND = 0.0198
"""log(1.02)."""


def rounds(bound: float, measured: Callable[[float], float]) -> list[tuple[float, float]]:
    seen: list[tuple[float, float]] = []
    while (limit := next_limit(bound, seen)) is not None:
        seen.append((limit, measured(limit)))
        assert len(seen) <= MOST_ROUNDS
    return seen


@pytest.mark.parametrize("bound", [0.001, BOUND, 0.7])
@pytest.mark.parametrize("scale", np.geomspace(0.3, 3, 7).tolist())
@pytest.mark.parametrize("power", [0.7, 0.85, 1.0, 1.2, 1.4])
def test_close_under_the_bound(bound: float, scale: float, power: float) -> None:
    seen = rounds(bound, lambda predicted: scale * bound * (predicted / bound) ** power)
    best = max(measured for _, measured in seen if measured <= bound)
    assert 0.95 * bound <= best


def test_a_good_prediction_needs_no_second_model() -> None:
    assert rounds(BOUND, lambda predicted: 0.97 * predicted) == [(BOUND, 0.97 * BOUND)]


def test_the_first_limit_is_the_bound_itself() -> None:
    assert next_limit(BOUND, []) == BOUND


@pytest.mark.parametrize("measured", [-0.01, 0.0, 1e-9])
def test_a_model_that_is_as_good_as_the_dense_one(measured: float) -> None:
    limit = next_limit(BOUND, [(BOUND, measured)])
    assert limit is not None
    assert BOUND < limit <= 3 * BOUND


def test_a_loss_far_beyond_the_bound() -> None:
    limit = next_limit(BOUND, [(BOUND, 100.0)])
    assert limit == pytest.approx(BOUND / 3)


def test_between_what_holds_and_what_does_not() -> None:
    limit = next_limit(BOUND, [(0.02, 0.03), (0.01, 0.012)])
    assert limit is not None
    assert 0.01 < limit < 0.02


def test_predictions_that_contradict_what_was_measured_end_it() -> None:
    assert next_limit(BOUND, [(0.02, 0.03), (0.021, 0.012)]) is None


def test_the_rounds_end_once_something_holds() -> None:
    seen = [(0.02 / 2**index, 0.08 / 2**index) for index in range(6)]
    assert next_limit(BOUND, seen[:2]) is not None
    assert seen[2][1] > BOUND
    assert next_limit(BOUND, seen[:3]) is not None
    assert next_limit(BOUND, [(0.001, 0.001)] * MOST_ROUNDS) is None


def test_rounds_go_on_while_nothing_holds() -> None:
    assert next_limit(BOUND, [(0.02 / 2**index, 1.0) for index in range(MOST_ROUNDS)]) is not None
