"""Sensitivity-based Truncation Rank Searching: one cut through all candidates of all layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from asvd_q.search.candidates import Candidate

__all__ = ["cut_at", "search_cut"]


def cut_at(
    candidates: Mapping[str, Sequence[Candidate]],
    ranking: Sequence[tuple[str, Candidate]],
    cut: int,
    cost_of: Callable[[Candidate], int],
) -> dict[str, Candidate]:
    """Every layer in its smallest form among the first `cut` of the ranking, else dense."""
    chosen = {name: forms[0] for name, forms in candidates.items()}
    for name, candidate in ranking[:cut]:
        if cost_of(candidate) < cost_of(chosen[name]):
            chosen[name] = candidate
    return chosen


def search_cut(
    candidates: Mapping[str, Sequence[Candidate]],
    cost_of: Callable[[Candidate], int],
    fits: Callable[[Mapping[str, Candidate]], bool],
    smallest: bool,
) -> tuple[list[tuple[str, Candidate]], int]:
    """Binary search for the cut at which the target begins, or ceases, to be met.

    Moving the cut along the candidates, sorted by rising sensitivity, makes the model smaller
    and its summed loss larger, step by step; so `fits` changes once. The last index known to
    satisfy the target is what is returned, never the last midpoint looked at (which the
    published code takes, and so misses its target on either side).

    Args:
        candidates: per layer, dense first. Equal sensitivities are taken in this order.
        cost_of: parameters or bytes of one candidate.
        fits: whether a choice meets the target.
        smallest: True for a budget, which is met from some cut on: find the first. False for a
            bound on the loss, which is met up to some cut: find the last.

    Returns:
        The ranking, least sensitive first, and the cut. The caller has checked that the target
        is met at one end.

    Source: ASVD, arXiv 2312.05821, section 3.3.
    """
    ranking = sorted(
        ((name, candidate) for name, forms in candidates.items() for candidate in forms[1:]),
        key=lambda pair: pair[1].loss,
    )
    low, high = 0, len(ranking)
    while low < high:
        middle = (low + high) // 2 if smallest else (low + high + 1) // 2
        met = fits(cut_at(candidates, ranking, middle, cost_of))
        if smallest:
            low, high = (low, middle) if met else (middle + 1, high)
        else:
            low, high = (middle, high) if met else (low, middle - 1)
    return ranking, low
