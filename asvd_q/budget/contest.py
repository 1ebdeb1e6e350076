"""Which forms of a layer are worth a trial, and which trials are worth offering.

Quantizing is what costs time. A form is tried only while a bound below its loss lies under the
convex hull of what was tried: under one budget for many layers nothing on or above the hull is
chosen, but to use up a remainder. Bounds that cost nothing:

- the caller's: factors lose at least what truncation to their rank does;
- with codes that are nowhere narrower, or finer groups, a form of the same rank loses less.

The second is a rule, not a theorem: trials are made from wide codes to narrow ones, and the share
`_SLACK` of what a wider form lost is what a narrower one is bounded by.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np

from asvd_q.budget.offers import Offer
from asvd_q.compression.matrices import FAILURES
from asvd_q.plan import Form, LayerPlan
from asvd_q.search.knapsack import lower_hull

__all__ = ["Cost", "Tried", "contest", "stored", "try_all", "undominated"]

Tried = tuple[Offer, float]
"""A form, and its predicted loss increase, nats per token."""

Cost = Callable[[Offer], int]
"""What a form takes of a budget."""

_SLACK = 0.95

_FORMS: tuple[Form, ...] = ("dense", "factors", "correction")

logger = logging.getLogger("asvd_q")


def stored(offer: Offer) -> int:
    """Bytes, the cost under every budget but one of time."""
    return offer.bytes


def contest(
    offers: Sequence[Offer],
    loss: Callable[[LayerPlan], float],
    bound: Callable[[LayerPlan], float],
    cost: Cost = stored,
) -> list[Tried]:
    """Try the forms that can still win, wide codes first.

    Args:
        offers: of one layer.
        loss: makes a form and predicts its loss. What it cannot make is left out.
        bound: what a form with a rank loses at least. Where it fails, nothing of the form is tried.
        cost: of a form, under the budget that is spent.

    Returns:
        Every form that was tried, with its loss.
    """
    tried: list[Tried] = []
    failed: set[Form] = set()
    hull = _Hull()
    for offer in sorted(offers, key=_order):
        layer = offer.layer
        if layer.form in failed:
            continue
        if layer.rank is not None:
            try:
                least = bound(layer)
            except FAILURES as error:  # nothing of this form can be made
                failed.add(layer.form)
                _log(layer, error)
                continue
            if hull.beats(cost(offer), max(least, _SLACK * _wider(layer, tried))):
                continue
        for one, found in try_all([offer], loss):
            tried.append((one, found))
            hull.add(cost(one), found)
    return tried


def try_all(offers: Sequence[Offer], loss: Callable[[LayerPlan], float]) -> list[Tried]:
    """Forms with their losses; one that cannot be made is left out, and the log says why."""
    tried: list[Tried] = []
    for offer in offers:
        layer = offer.layer
        try:
            found = loss(layer)
        except FAILURES as error:
            _log(layer, error)
            continue
        if math.isfinite(found):
            tried.append((offer, found))
    return tried


def undominated(tried: Sequence[Tried], cost: Cost = stored) -> list[Tried]:
    """Those that no other one beats in both cost and loss, by falling cost."""
    kept: list[Tried] = []
    least = math.inf
    for offer, loss in sorted(tried, key=lambda pair: (cost(pair[0]), pair[1])):
        if loss < least:
            kept.append((offer, loss))
            least = loss
    return kept[::-1]


def _log(layer: LayerPlan, error: Exception) -> None:
    logger.info("%s: %s is no candidate: %s", layer.name, layer.form, error)


def _order(offer: Offer) -> tuple[float, ...]:
    """Dense, factors, corrections; rank by rank, from wide codes and fine groups to coarse ones."""
    layer = offer.layer
    specs = [spec for spec in layer.quantization.values() if spec is not None]
    widths = [spec.bits for spec in specs]
    groups = [spec.group_width(layer.shape[1]) for spec in specs]
    return (
        _FORMS.index(layer.form),
        -(layer.rank or 0),
        max(groups, default=0),
        -min(widths, default=32),
        -sum(widths),
    )


def _wider(layer: LayerPlan, tried: Sequence[Tried]) -> float:
    """The largest loss among tried forms of the same rank whose codes are nowhere narrower."""
    return max(
        (
            loss
            for offer, loss in tried
            if offer.layer.form == layer.form
            and offer.layer.rank == layer.rank
            and _no_narrower(offer.layer, layer)
        ),
        default=0.0,
    )


def _no_narrower(one: LayerPlan, other: LayerPlan) -> bool:
    for slot, spec in other.quantization.items():
        wider = one.quantization[slot]
        if wider is None or spec is None:
            if wider is not None:
                return False
        elif wider.bits < spec.bits or wider.group_width(1 << 30) > spec.group_width(1 << 30):
            return False
    return True


class _Hull:
    """The lower convex hull of points (cost, loss)."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []

    def add(self, cost: float, loss: float) -> None:
        points = np.array(sorted([*self._points, (cost, loss)]))
        self._points = [
            (float(points[item, 0]), float(points[item, 1]))
            for item in lower_hull(points[:, 0], points[:, 1])
        ]

    def beats(self, cost: float, loss: float) -> bool:
        """Whether the hull lies at or below a point."""
        if not self._points or cost < self._points[0][0]:
            return False
        costs, losses = zip(*self._points, strict=True)
        return bool(np.interp(cost, costs, losses) <= loss)
