"""Predictions of every rank, corrected by measurements of those ranks that decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from asvd_q.search.allocation import Allocation, Unit
from asvd_q.search.candidates import Candidate, monotone_losses
from asvd_q.search.context import SearchContext
from asvd_q.search.knapsack import lower_hull
from asvd_q.search.scoring import Metric
from asvd_q.search.sensitivities import Losses, Ranks, exact_sensitivities, fast_sensitivities

__all__ = ["corrected_losses", "deciding_ranks", "hybrid_sensitivities"]

Candidates = Mapping[str, Sequence[Candidate]]

_ROUNDS = 3

_FLOOR = 1e-6
"""Nats per token that both sides of a ratio are raised by: below it both are noise."""

_FARTHEST = 10.0
"""A ratio is taken to be no farther from 1 than by this factor, for the ranks around it."""


def hybrid_sensitivities(
    context: SearchContext,
    ranks: Ranks,
    offer: Callable[[Losses], Candidates],
    solve: Callable[[Candidates], Allocation],
    unit: Unit,
) -> tuple[Losses, Losses]:
    """Predict, allocate, measure what the allocation hangs on, and allocate again.

    A round measures, for every layer whose chosen form has not been measured, that form and its
    neighbours; it ends when there is no such layer. What is measured does not depend on what
    earlier searches have left in the folder.

    Args:
        ranks: to predict.
        offer: what can be chosen from, given losses.
        solve: what the target makes of it.
        unit: that the target counts.

    Returns:
        Losses of all ranks, corrected; and those that were measured.

    Raises:
        RecipeError: nothing may be run, and one of them was not found before.
    """
    predicted = fast_sensitivities(context, ranks)
    metric: Metric = "perplexity" if context.search.labels == "corpus" else "kl"

    def advance(stage: str, done: int, total: int) -> None:
        context.progress("checking candidates", done, total)

    checking = replace(context, progress=advance)
    asked: dict[str, set[int]] = {}
    checked: Losses = {}
    losses = predicted
    for _ in range(_ROUNDS):
        candidates = offer(losses)
        chosen = solve(candidates).chosen
        open_layers = [
            name
            for name in predicted
            if name not in asked or chosen[name].rank not in (None, *asked[name])
        ]
        if not open_layers:
            break
        for name in open_layers:
            asked.setdefault(name, set()).update(
                deciding_ranks(candidates[name], chosen[name], unit)
            )
        wanted = {name: sorted(some) for name, some in asked.items()}
        checked = exact_sensitivities(checking, wanted, metric)
        losses = {
            name: corrected_losses(curve, checked.get(name, {}))
            for name, curve in predicted.items()
        }
    return losses, checked


def deciding_ranks(forms: Sequence[Candidate], chosen: Candidate, unit: Unit) -> set[int]:
    """The chosen rank, and the next larger and smaller on the layer's lower convex hull.

    An allocation moves along the hulls: another one of nearly the same size differs from it by
    such neighbours.

    Args:
        forms: of one layer, dense first.
    """
    costs = [form.parameters if unit == "parameters" else form.bytes for form in forms]
    own = costs[forms.index(chosen)]
    hull = lower_hull(np.array(costs, float), np.array([form.loss for form in forms]))
    smaller = [item for item in hull if costs[item] < own][-1:]
    larger = [item for item in hull if costs[item] > own][:1]
    ranks = (chosen.rank, *(forms[item].rank for item in (*smaller, *larger)))
    return {rank for rank in ranks if rank is not None}


def corrected_losses(
    predicted: Mapping[int, float], checked: Mapping[int, float]
) -> dict[int, float]:
    """A predicted curve drawn through the ranks at which it was measured.

    Between two of them the ratio of measured to predicted is interpolated in the rank, beyond
    them it is that of the nearest. Predictions are made monotone first.

    Args:
        predicted: rank → loss increase, nats per token.
        checked: the same, measured, of some of the ranks.
    """
    if not checked:
        return dict(predicted)
    curve = monotone_losses(predicted)
    places = sorted(checked)
    ratios = [(max(checked[rank], 0.0) + _FLOOR) / (curve[rank] + _FLOOR) for rank in places]
    limited = np.clip(ratios, 1 / _FARTHEST, _FARTHEST)
    return {
        rank: checked.get(rank, loss * float(np.interp(rank, places, limited)))
        for rank, loss in sorted(curve.items())
    }
