"""The smallest model under a loss that is measured, found with few compressions."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MOST_ROUNDS", "next_limit"]

MOST_ROUNDS = 5
"""Models that are compressed at most before the best of them is taken."""

_CLOSE = 0.95
"""Of the bound: a measured loss between this and the whole of it ends the search."""

_LARGEST_STEP = 3.0


def next_limit(bound: float, seen: Sequence[tuple[float, float]]) -> float | None:
    """The predicted loss to solve for next; None where what was seen is enough.

    Predictions order models better than they measure them. So the next one lies where the ratio of
    measured to predicted, known on both sides of the bound or on one, puts it.

    Args:
        bound: on the measured loss, nats per token, above 0.
        seen: (predicted, measured) of every model so far, in the order in which they came.
    """
    if not seen:
        return bound
    met = [pair for pair in seen if pair[1] <= bound]
    if any(measured >= _CLOSE * bound for _, measured in met):
        return None
    if len(seen) >= MOST_ROUNDS and met:
        return None
    missed = [pair for pair in seen if pair[1] > bound]
    if met and missed:
        low, high = max(met), min(missed)
        if low[0] >= high[0]:  # noise: predictions that close say no more
            return None
        share = (bound - low[1]) / (high[1] - low[1])
        return low[0] + min(max(0.95 * share, 0.1), 0.9) * (high[0] - low[0])
    predicted, measured = max(met) if met else min(missed)
    factor = 0.98 * bound / max(measured, bound / _LARGEST_STEP)
    return predicted * max(factor, 1 / _LARGEST_STEP)
