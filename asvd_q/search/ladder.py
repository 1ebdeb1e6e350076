"""The smallest model under a bound that is measured, found with few measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from asvd_q.search.allocation import Allocation

__all__ = ["MeasuredAllocation", "smallest_within"]

_FIRST = (0.5, 1.0, 2.0, 4.0)
"""Predicted losses to begin with, relative to the bound on the measured one."""

_ROUNDS = 3


@dataclass(frozen=True)
class MeasuredAllocation:
    """An allocation and the loss that was measured of it, nats per token."""

    allocation: Allocation
    loss: float


def smallest_within(
    bound: float,
    dense: Allocation,
    solve: Callable[[float], Allocation],
    measure: Callable[[Sequence[Allocation]], Sequence[float]],
) -> tuple[MeasuredAllocation, list[MeasuredAllocation]]:
    """Search along the trade-off that the predictions give.

    A prediction orders allocations better than it measures them: so allocations are solved for a
    few bounds on the predicted loss, measured together, and the next ones are solved for between
    the two that enclose the bound, close to where a straight line between them meets it.

    Args:
        bound: on the measured loss, above 0.
        dense: the allocation that changes nothing; its loss is 0.
        solve: the smallest allocation whose predicted loss is within a limit.
        measure: losses of allocations that are not dense, a few at a time.

    Returns:
        Of all that were measured to lose no more than the bound, the one of fewest bytes (of
        equals, the one that loses less); and all that were measured, by falling bytes.
    """
    seen = {_key(dense): MeasuredAllocation(dense, 0.0)}
    limits = [bound * factor for factor in _FIRST]
    for _ in range(_ROUNDS):
        allocations = {_key(one): one for one in map(solve, limits)}
        fresh = [one for key, one in allocations.items() if key not in seen]
        if not fresh:
            break
        for one, loss in zip(fresh, measure(fresh), strict=True):
            seen[_key(one)] = MeasuredAllocation(one, loss)
        limits = _next_limits(bound, list(seen.values()))
    best = _best(bound, seen.values())
    by_bytes = sorted(seen.values(), key=lambda one: (-one.allocation.bytes, one.loss))
    return best, [one for one in by_bytes if one.allocation is not dense]


def _key(allocation: Allocation) -> tuple[tuple[str, int], ...]:
    return tuple(allocation.ranks.items())


def _best(bound: float, seen: Iterable[MeasuredAllocation]) -> MeasuredAllocation:
    met = (one for one in seen if one.loss <= bound)
    return min(met, key=lambda one: (one.allocation.bytes, one.loss))


def _next_limits(bound: float, seen: Sequence[MeasuredAllocation]) -> list[float]:
    """Predicted losses at which to solve next."""
    below = _best(bound, seen)
    smaller = [one for one in seen if one.allocation.bytes < below.allocation.bytes]
    low = below.allocation.loss
    if not smaller:  # all that is smaller is still to be seen
        return [max(low, bound) * factor for factor in (2.0, 4.0, 8.0, 16.0)]
    above = max(smaller, key=lambda one: one.allocation.bytes)
    high = above.allocation.loss
    if not below.allocation.ranks:  # all that was seen loses too much
        return [high / factor for factor in (16.0, 8.0, 4.0, 2.0)]
    crossing = (bound - below.loss) / (above.loss - below.loss)
    shares = (
        0.6 * crossing,
        0.9 * crossing,
        crossing + 0.1 * (1 - crossing),
        crossing + 0.4 * (1 - crossing),
    )
    return [low + share * (high - low) for share in shares]
