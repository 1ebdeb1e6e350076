"""The choice for a whole model, against looking at all of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest

from asvd_q.budget.choice import Offering, choose, is_within, make_target
from asvd_q.budget.counting import Count
from asvd_q.budget.offers import Offer, layer_offers
from asvd_q.budget.sweep import LayerTried
from asvd_q.errors import RankError
from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q.recipe import BudgetSection
from asvd_q.search.allocation import LossBound
from asvd_q_exporters.onnx import OnnxExporter
from tests.budget.given import dense, factors, layer_ref, recipe

SHAPES = {
    "a.q_proj": (24, 32),
    "a.up_proj": (40, 32),
    "b.q_proj": (24, 32),
    "b.down_proj": (32, 40),
}
REFS = [layer_ref(shape, name) for name, shape in SHAPES.items()]
WEIGHTS = sum(rows * columns for rows, columns in SHAPES.values())
OTHER = 4000
BASE = Plan(float_type="float32", layers=tuple(dense(ref, None) for ref in REFS), other_bytes=OTHER)
STORE = Count("float32")
Tries = Mapping[str, LayerTried]


def tries(seed: int, each: int = 6, count: Count = STORE) -> Tries:
    """Some of the forms of every layer, the one in floats among them, with random losses."""
    rng = np.random.default_rng(seed)
    given = recipe(
        budget={"bits_per_weight": 4, "bits": [2, 4, 8], "group_sizes": [16], "ranks": 2},
        decompose={"rank_multiple": 4},
    )
    found = {}
    for ref in REFS:
        floats, *others = layer_offers(ref, given, count)
        chosen = rng.choice(len(others), each, replace=False)
        pairs = [
            (others[item], float(rng.exponential(500 / others[item].bytes))) for item in chosen
        ]
        found[ref.name] = LayerTried([(floats, 0.0), *pairs])
    return found


def offering(tried: Tries, pinned: Mapping[str, LayerPlan] | None = None) -> Offering:
    return Offering.of(BASE, tried, STORE, pinned or {})


def every_choice(tried: Tries) -> Iterator[tuple[int, float]]:
    """Bytes and loss of all combinations."""
    for forms in product(*(found.tried for found in tried.values())):
        yield sum(offer.bytes for offer, _ in forms), math.fsum(loss for _, loss in forms)


def section(**target: Any) -> BudgetSection:
    return BudgetSection.model_validate(target)


def assert_consistent(tried: Tries, budget: BudgetSection) -> tuple[int, float]:
    """Bytes and loss of a choice, which are those of its plan."""
    offered = offering(tried)
    choice = choose(offered, make_target(budget, offered))
    losses = []
    for layer in choice.plan:
        known = {str(offer.layer): (offer.bytes, loss) for offer, loss in tried[layer.name].tried}
        size, loss = known[str(layer)]
        assert size == layer.predicted_bytes
        losses.append(loss)
    assert choice.loss == pytest.approx(math.fsum(losses))
    assert choice.layer_bytes == sum(layer.predicted_bytes for layer in choice.plan)
    assert choice.total_bytes == choice.plan.predicted_bytes == choice.layer_bytes + OTHER
    assert choice.bits_per_weight == 8 * choice.layer_bytes / WEIGHTS
    assert is_within(budget, STORE, choice.plan)
    return choice.layer_bytes, choice.loss


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.9])
def test_size(seed: int, share: float) -> None:
    tried = tries(seed)
    sizes = sorted({size for size, _ in every_choice(tried)})
    limit = sizes[int(share * len(sizes))]
    size, loss = assert_consistent(tried, section(size=f"{limit + OTHER} B"))
    assert size <= limit
    assert loss == pytest.approx(min(loss for size, loss in every_choice(tried) if size <= limit))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("bits", [5.0, 7.3, 12.0, 32.0])
def test_bits_per_weight(seed: int, bits: float) -> None:
    tried = tries(seed)
    size, loss = assert_consistent(tried, section(bits_per_weight=bits))
    limit = bits * WEIGHTS / 8
    assert size <= limit
    assert loss == pytest.approx(min(loss for size, loss in every_choice(tried) if size <= limit))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("bound", [1e-6, 0.1, 0.5, 2.0, 100.0])
def test_max_loss_increase(seed: int, bound: float) -> None:
    tried = tries(seed)
    size, loss = assert_consistent(tried, section(max_loss_increase=bound))
    assert loss <= bound * (1 + 1e-9)
    assert size == min(size for size, loss in every_choice(tried) if loss <= bound)


def test_a_budget_that_is_met_to_the_byte() -> None:
    tried = tries(0)
    for size, _ in list(every_choice(tried))[::97]:
        bits = 8 * size / WEIGHTS
        found, _ = assert_consistent(tried, section(bits_per_weight=bits))
        assert found <= size


def test_bytes_are_the_formats() -> None:
    count = Count("float32", OnnxExporter())
    tried = tries(1, count=count)
    offered = Offering.of(BASE, tried, count, {})
    choice = choose(offered, make_target(section(size="12 KB"), offered))
    assert choice.layer_bytes == sum(OnnxExporter().stored_bytes(layer) for layer in choice.plan)
    assert choice.total_bytes == choice.layer_bytes + OTHER == count.of_plan(choice.plan)
    assert choice.total_bytes <= 12_000


def test_what_a_format_rounds_counts_rounded() -> None:
    options = OnnxExporter.options_model.model_validate({"dtype": "float16"})
    assert Count("float32", OnnxExporter(options)).of_rest(BASE) == OTHER // 2
    assert Count("float32").of_rest(BASE) == OTHER


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"size": "1 B"}, r"0\.00 MiB for the whole model cannot be reached: .* reaches from "),
        ({"bits_per_weight": 0.5}, r"0\.5000 bits per weight cannot be reached: .* reaches from "),
    ],
)
def test_a_budget_out_of_reach(target: dict[str, Any], words: str) -> None:
    offered = offering(tries(0))
    with pytest.raises(RankError, match=words):
        choose(offered, make_target(section(**target), offered))


def test_the_range_in_a_message_can_be_reached() -> None:
    tried = tries(0)
    offered = offering(tried)
    with pytest.raises(RankError) as caught:
        choose(offered, make_target(section(bits_per_weight=0.5), offered))
    low, high = map(float, re.findall(r"reaches from (\S+) \D+to (\S+) bits", str(caught.value))[0])
    sizes = [size for size, _ in every_choice(tried)]
    assert low == pytest.approx(8 * min(sizes) / WEIGHTS, abs=1e-4)
    assert high == pytest.approx(32, abs=1e-4)


def test_a_loss_out_of_reach() -> None:
    name = REFS[0].name
    stuck = factors(REFS[0], 4, QuantSpec(bits=2, group_size=16))
    tried = dict(tries(0))
    tried[name] = LayerTried([*tried[name].tried, (Offer(stuck, stuck.predicted_bytes), 3.0)])
    offered = offering(tried, {name: stuck})
    with pytest.raises(RankError, match="the target of 1 nats per token cannot be reached"):
        choose(offered, LossBound(1.0))


def test_a_pinned_layer_keeps_its_form() -> None:
    tried = tries(2)
    name = REFS[1].name
    pinned = factors(REFS[1], 8, None).model_copy(update={"reason": "its quantization failed"})
    near = [
        (offer, loss)
        for offer, loss in tried[name].tried
        if (offer.layer.form, offer.layer.rank) == ("factors", 8)
    ]
    offered = offering(tried, {name: pinned})
    (only,) = offered.candidates[name]
    assert only.layer == pinned
    assert only.bytes == pinned.predicted_bytes == 4 * 8 * (40 + 32)
    assert only.loss == min((loss for _, loss in near), default=0.0)
    choice = choose(offered, make_target(section(bits_per_weight=9), offered))
    assert choice.plan.layer(name) == pinned
    rest = {key: found for key, found in tried.items() if key != name}
    limit = 9 * WEIGHTS / 8 - only.bytes
    best = min(loss for size, loss in every_choice(rest) if size <= limit)
    assert choice.loss == pytest.approx(best + only.loss)


def test_a_layer_pinned_to_codes_loses_what_they_do() -> None:
    name, codes = REFS[0].name, dense(REFS[0], QuantSpec(bits=2, group_size=16))
    tried = dict(tries(0))
    tried[name] = LayerTried([*tried[name].tried, (Offer(codes, codes.predicted_bytes), 0.7)])
    (only,) = offering(tried, {name: codes}).candidates[name]
    assert only.loss == 0.7


def test_a_layer_pinned_to_floats_loses_nothing() -> None:
    name = REFS[0].name
    (only,) = offering(tries(0), {name: dense(REFS[0], None)}).candidates[name]
    assert only.loss == 0


@pytest.mark.parametrize("untried", [{}, {REFS[2].name: LayerTried()}])
def test_a_layer_without_trials_stays_as_it_is(untried: Tries) -> None:
    name = REFS[2].name
    tried = {key: found for key, found in tries(3).items() if key != name}
    offered = offering(tried | dict(untried))
    (only,) = offered.candidates[name]
    assert (only.layer, only.bytes, only.loss) == (BASE.layer(name), 4 * 24 * 32, 0.0)
    choice = choose(offered, LossBound(1e9))
    assert choice.plan.layer(name) == BASE.layer(name)
    assert list(choice.allocation.chosen) == list(SHAPES)


def test_candidates_fall_in_bytes_and_rise_in_loss() -> None:
    for forms in offering(tries(4)).candidates.values():
        sizes, losses = [one.bytes for one in forms], [one.loss for one in forms]
        assert sizes == sorted(set(sizes), reverse=True)
        assert losses == sorted(set(losses))


def test_within() -> None:
    total = BASE.predicted_bytes
    assert is_within(section(size=f"{total} B"), STORE, BASE)
    assert not is_within(section(size=f"{total - 1} B"), STORE, BASE)
    assert is_within(section(bits_per_weight=32), STORE, BASE)
    assert not is_within(section(bits_per_weight=31.999), STORE, BASE)
    assert is_within(section(max_loss_increase=1e-9), STORE, BASE)
    assert is_within(section(perplexity="+1 %"), STORE, BASE)
    small = BASE.with_layers(
        {ref.name: dense(ref, QuantSpec(bits=2, group_size=16)) for ref in REFS}
    )
    bits = 8 * sum(layer.predicted_bytes for layer in small) / WEIGHTS
    assert is_within(section(bits_per_weight=bits), STORE, small)
    assert not is_within(section(bits_per_weight=bits - 1e-3), STORE, small)


def test_nothing_is_within_the_budget_of_a_format_that_cannot_hold_it() -> None:
    act_order = QuantSpec(method="gptq", bits=2, group_size=16, act_order=True)
    plan = BASE.with_layers({ref.name: dense(ref, act_order) for ref in REFS})
    assert is_within(section(size="1 MB"), STORE, plan)
    assert not is_within(section(size="1 MB"), Count("float32", OnnxExporter()), plan)
