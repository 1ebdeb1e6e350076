"""Which forms are tried and kept, against trying them all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from asvd_q.budget.contest import Tried, contest, try_all, undominated
from asvd_q.budget.counting import Count
from asvd_q.budget.offers import Offer, layer_offers
from asvd_q.errors import MissingExtraError, NumericsError
from asvd_q.plan import LayerPlan
from asvd_q.search.knapsack import lower_hull
from tests.budget.given import dense, layer_ref, recipe

REF = layer_ref((64, 96))
GRID: dict[str, Any] = {
    "bits_per_weight": 4,
    "bits": [2, 3, 4, 6, 8],
    "group_sizes": [16, 32, 96],
    "ranks": 5,
}


def offers() -> list[Offer]:
    return layer_offers(REF, recipe(budget=GRID), Count("float32"))


Losses = tuple[Callable[[LayerPlan], float], Callable[[LayerPlan], float]]


def losses(seed: int) -> Losses:
    """Losses that obey the rules: at least the bound's, and hardly less with narrower codes."""
    rng = np.random.default_rng(seed)
    known: dict[str, float] = {}
    decay, price = rng.uniform(5, 40), 10 ** rng.uniform(-2.5, 0.3)

    def bound(layer: LayerPlan) -> float:
        return 0.0 if layer.rank is None else float(np.exp(-layer.rank / decay))

    def loss(layer: LayerPlan) -> float:
        key = layer.model_dump_json()
        if key not in known:
            specs = [spec for spec in layer.quantization.values() if spec is not None]
            noise = sum(4.0**-spec.bits * spec.group_size**0.5 for spec in specs) * price
            known[key] = bound(layer) + noise * rng.uniform(0.96, 1)
        return known[key]

    return loss, bound


def hull_of(tried: list[Tried]) -> list[tuple[int, float]]:
    sizes = np.array([float(offer.bytes) for offer, _ in tried])
    values = np.array([loss for _, loss in tried])
    return [(tried[item][0].bytes, tried[item][1]) for item in lower_hull(sizes, values)]


@pytest.mark.parametrize("seed", range(20))
def test_no_point_of_the_hull_is_missed(seed: int) -> None:
    loss, bound = losses(seed)
    everything = try_all(offers(), loss)
    found = contest(offers(), loss, bound)
    assert set(map(str, found)) <= set(map(str, everything))
    assert len(found) < 0.7 * len(everything)
    assert hull_of(found) == hull_of(everything)


def no_narrower(one: LayerPlan, other: LayerPlan) -> bool:
    pairs = [(one.quantization[slot], spec) for slot, spec in other.quantization.items()]
    return all(
        a is not None and b is not None and a.bits >= b.bits and a.group_size <= b.group_size
        for a, b in pairs
    )


def losses_by_rule(seed: int) -> Callable[[LayerPlan], float]:
    """As little with narrower codes, and in coarser groups, as the rule lets them lose."""
    rng = np.random.default_rng(seed)
    decay = rng.uniform(5, 30)
    known: dict[str, float] = {}
    made: list[LayerPlan] = []
    ordered = sorted(offers(), key=lambda one: -one.bytes)
    for layer in (one.layer for one in ordered):
        wider = [
            known[str(other)]
            for other in made
            if (other.form, other.rank) == (layer.form, layer.rank) and no_narrower(other, layer)
        ]
        first = 0.05 if layer.rank is None else float(np.exp(-layer.rank / decay))
        known[str(layer)] = max(wider, default=first) * rng.uniform(0.951, 1.3)
        made.append(layer)
    known[str(ordered[0].layer)] = 0.0
    return lambda layer: known[str(layer)]


@pytest.mark.parametrize("seed", range(30))
def test_wider_codes_alone_miss_no_point_of_the_hull(seed: int) -> None:
    loss = losses_by_rule(seed)
    everything = try_all(offers(), loss)
    found = contest(offers(), loss, lambda layer: 0.0)
    assert len(found) < len(everything)
    assert hull_of(found) == hull_of(everything)


def test_dense_forms_are_all_tried() -> None:
    loss, _ = losses(0)
    tried = contest(offers(), loss, lambda layer: 1e9)
    whole = [one for one, _ in tried if one.layer.form == "dense"]
    assert len(whole) == 16
    smallest = min(one.bytes for one in whole)
    assert all(one.bytes < smallest for one, _ in tried if one.layer.form != "dense")


@pytest.mark.parametrize("seed", range(10))
def test_undominated_is_what_nothing_beats(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layer = dense(REF, None)
    tried = [
        (Offer(layer, int(size)), float(loss))
        for size, loss in zip(rng.integers(1, 12, 25), rng.integers(0, 9, 25), strict=True)
    ]
    points = {(offer.bytes, loss) for offer, loss in tried}
    expected = {
        (size, loss)
        for size, loss in points
        if not any(a <= size and b <= loss and (a, b) != (size, loss) for a, b in points)
    }
    found = [(offer.bytes, loss) for offer, loss in undominated(tried)]
    assert found == sorted(expected, reverse=True)


def test_nothing_tried_is_nothing_offered() -> None:
    assert undominated([]) == []


def test_a_missing_package_is_asked_for() -> None:
    def failing(layer: LayerPlan) -> float:
        raise MissingExtraError("gptqmodel", "gptq", "quantize")

    with pytest.raises(MissingExtraError, match="gptqmodel"):
        contest(offers(), failing, losses(1)[1])


@pytest.mark.parametrize(
    "error",
    [
        NumericsError("not finite"),
        ValueError("too large"),
        torch.linalg.LinAlgError("did not converge"),  # type: ignore[attr-defined]
    ],
)
def test_what_fails_is_left_out_and_logged(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    loss, bound = losses(1)

    def failing(layer: LayerPlan) -> float:
        if any(spec is not None and spec.bits == 3 for spec in layer.quantization.values()):
            raise error
        return loss(layer)

    with caplog.at_level(logging.INFO, "asvd_q"):
        found = contest(offers(), failing, bound)
    assert found
    assert all(
        spec is None or spec.bits != 3
        for one, _ in found
        for spec in one.layer.quantization.values()
    )
    assert f"{REF.name}: dense is no candidate: {error}" in caplog.text


def test_what_nobody_foresaw_is_raised() -> None:
    def failing(layer: LayerPlan) -> float:
        raise KeyError(layer.name)

    with pytest.raises(KeyError):
        contest(offers(), failing, lambda layer: 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_left_out(value: float) -> None:
    loss, bound = losses(2)
    found = contest(offers(), lambda layer: value if layer.rank else loss(layer), bound)
    assert {one.layer.form for one, _ in found} == {"dense"}


def test_a_layer_that_cannot_be_decomposed_has_its_dense_forms(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loss, _ = losses(3)

    def bound(layer: LayerPlan) -> float:
        raise torch.linalg.LinAlgError("did not converge")  # type: ignore[attr-defined]

    with caplog.at_level(logging.INFO, "asvd_q"):
        found = contest(offers(), loss, bound)
    assert {one.layer.form for one, _ in found} == {"dense"}
    assert len(found) == 16
    assert caplog.messages == [f"{REF.name}: factors is no candidate: did not converge"]
