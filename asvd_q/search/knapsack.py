"""The multiple-choice knapsack, solved exactly.

One item is chosen from every class so that the weights together stay within a capacity and the
values together are as small as possible. A mixed-integer solver can do this too, but compares
sums with a tolerance, which a budget of bytes must not have, and 224 layers of 40 ranks took
HiGHS between half a second and half a minute. The duality gap of such instances is so small
that looking at all solutions inside the gap takes a tenth of a second.

Source: Dudziński and Walukiewicz, Exact methods for the knapsack problem and its
generalizations, EJOR 28 (1987), for the hull and the bound; Pisinger, A minimal algorithm for the
multiple-choice knapsack problem, EJOR 83 (1995), for dynamic programming by dominance.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Choices", "lower_hull", "solve_knapsack"]

Floats = NDArray[np.float64]
Choices = tuple[Floats, Floats]
"""Weights and values of the items of one class."""

_ROUNDING = 1e-9
"""Relative margin on the gap, so that rounding never prunes the best solution."""

_MOST_STATES = 1 << 16
"""Partial choices kept at once; 224 layers of 40 ranks need up to about ten thousand.

Only where value is linear in weight, to many digits and in every class, are there more: then
every choice that fills the capacity is as good, and an even selection of them still finds one.
"""


def solve_knapsack(classes: Sequence[Choices], capacity: float) -> list[int]:
    """Index of the item to take from every class; the result is the same every time.

    Whole numbers below 2⁵³ are added without rounding, so such a capacity is never exceeded.

    Args:
        classes: weights and values, at least one item each. Negative values are allowed.
        capacity: that the chosen weights together may reach.

    Returns:
        The choice with the smallest sum of values; among equals, that with the smaller weight.

    Raises:
        ValueError: even the lightest items together exceed the capacity.
    """
    kept = [_undominated(weights, values) for weights, values in classes]
    problem = [(w[k], v[k]) for (w, v), k in zip(classes, kept, strict=True)]
    if sum(float(weights[0]) for weights, _ in problem) > capacity:
        raise ValueError("even the lightest items together exceed the capacity")
    price, greedy = _greedy(problem, capacity)
    chosen = _close_gap(problem, capacity, price, greedy)
    return [int(indices[item]) for indices, item in zip(kept, chosen, strict=True)]


def lower_hull(weights: Floats, values: Floats) -> list[int]:
    """Indices of the items on the lower convex hull, by ascending weight and falling value."""
    kept = _undominated(weights, values)
    return [int(kept[item]) for item in _hull(weights[kept], values[kept])]


def _undominated(weights: Floats, values: Floats) -> NDArray[np.intp]:
    """Items that no other equals or beats in both, by ascending weight and falling value."""
    order: NDArray[np.intp] = np.lexsort((values, weights))
    best = np.minimum.accumulate(values[order])
    first = np.flatnonzero(np.concatenate(([True], best[1:] < best[:-1])))
    return np.take(order, first)


def _hull(weights: Floats, values: Floats) -> list[int]:
    """Items on the lower convex hull, by ascending weight."""
    hull: list[int] = []
    for item in range(len(weights)):
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            gain, width = values[a] - values[b], weights[b] - weights[a]
            if gain * (weights[item] - weights[b]) > (values[b] - values[item]) * width:
                break
            hull.pop()
        hull.append(item)
    return hull


def _greedy(problem: Sequence[Choices], capacity: float) -> tuple[float, list[int]]:
    """Climb the hulls, steepest step first.

    Returns:
        Value per unit of weight at the first step that does not fit, the optimal multiplier of
        the linear relaxation (0 where all fit), and the choice reached, later steps that still
        fit included.
    """
    steps: list[tuple[float, int, int, int]] = []
    chosen: list[int] = []
    for index, (weights, values) in enumerate(problem):
        hull = _hull(weights, values)
        chosen.append(hull[0])
        for before, after in pairwise(hull):
            slope = (values[before] - values[after]) / (weights[after] - weights[before])
            steps.append((-float(slope), index, before, after))
    total = sum(float(weights[item]) for (weights, _), item in zip(problem, chosen, strict=True))
    price = 0.0
    for slope, index, before, after in sorted(steps):
        weights = problem[index][0]
        step = float(weights[after] - weights[before])
        if chosen[index] == before and total + step <= capacity:
            chosen[index] = after
            total += step
        elif price == 0.0:
            price = -slope
    return price, chosen


def _close_gap(
    problem: Sequence[Choices], capacity: float, price: float, greedy: list[int]
) -> list[int]:
    """Search the solutions within ever wider distances of the Lagrangian bound.

    With the multiplier p, value = bound + Σ reduced cost + p · unused capacity, all three terms
    known and the last two not negative. So a solution found within a distance is the best of all,
    and nothing whose reduced costs add up to more need ever be looked at.
    """
    if price == 0.0:  # every class has its cheapest item: nothing to trade
        return greedy
    reduced: list[Floats] = []
    for weights, values in problem:
        cost = values + price * weights
        reduced.append(cost - cost.min())
    total = sum(float(weights[item]) for (weights, _), item in zip(problem, greedy, strict=True))
    gap = sum(float(cost[item]) for cost, item in zip(reduced, greedy, strict=True))
    gap += price * (capacity - total)
    scale = sum(float(np.abs(values).max()) for _, values in problem)
    distance = max(gap / 4**6, scale * 1e-15)
    while distance < gap:
        found = _within(problem, capacity, price, reduced, distance)
        if found is not None:
            return found
        distance *= 2
    return _within(problem, capacity, price, reduced, gap) or greedy


def _within(
    problem: Sequence[Choices],
    capacity: float,
    price: float,
    reduced: Sequence[Floats],
    distance: float,
) -> list[int] | None:
    """The best choice whose value is within `distance` of the bound; None if there is none.

    Classes are added one at a time. Of the partial choices only those are kept that nothing else
    dominates and that can still end within the distance and the capacity.
    """
    scale = sum(float(np.abs(values).max()) for _, values in problem)
    margin = distance * (1 + _ROUNDING) + scale * 1e-14
    items = [np.flatnonzero(cost <= margin) for cost in reduced]
    # Classes with many items left go last: the states they multiply are then few.
    order = sorted(range(len(problem)), key=lambda index: (len(items[index]), index))
    lightest = _rest([float(problem[index][0][items[index]].min()) for index in order])
    heaviest = _rest([float(problem[index][0][items[index]].max()) for index in order])
    nothing: Floats = np.zeros(1)
    weight, value, cost = nothing, nothing, nothing
    trail: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for step, index in enumerate(order):
        these = items[index]
        weights, values = problem[index]
        weight = (weight[:, None] + weights[these]).ravel()
        value = (value[:, None] + values[these]).ravel()
        cost = (cost[:, None] + reduced[index][these]).ravel()
        unused = np.maximum(capacity - weight - heaviest[step + 1], 0.0)
        possible = (weight + lightest[step + 1] <= capacity) & (cost + price * unused <= margin)
        states = np.flatnonzero(possible)
        if not states.size:
            return None
        states = states[_undominated(weight[states], value[states])]
        if states.size > _MOST_STATES:
            states = states[np.linspace(0, states.size - 1, _MOST_STATES).astype(np.intp)]
        weight, value, cost = weight[states], value[states], cost[states]
        trail.append((states // len(these), these[states % len(these)]))
    state = len(weight) - 1  # values fall along the states
    chosen = [0] * len(problem)
    for index, (parents, taken) in zip(reversed(order), reversed(trail), strict=True):
        chosen[index] = int(taken[state])
        state = int(parents[state])
    return chosen


def _rest(amounts: Sequence[float]) -> list[float]:
    """Sum of what comes from each position on, and 0 at the end."""
    sums = [0.0]
    for amount in reversed(amounts):
        sums.append(sums[-1] + amount)
    return sums[::-1]
