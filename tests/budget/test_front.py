"""The best model at every budget, and plain quantization beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from asvd_q.budget.choice import Choice, Offering, choose
from asvd_q.budget.counting import Count
from asvd_q.budget.front import Uniform, front, reach, uniform_models
from asvd_q.budget.offers import Offer, layer_offers, uniform_offers
from asvd_q.budget.sweep import LayerTried
from asvd_q.plan import Plan
from asvd_q.report.budget import front_content, front_table, write_front
from asvd_q.search.allocation import Budget, LossBound
from tests.budget.given import dense, layer_ref, recipe

REFS = [layer_ref((32, 48), "a.up_proj"), layer_ref((48, 32), "a.down_proj"), layer_ref((32, 32))]
OTHER = 1000
BASE = Plan(float_type="float32", layers=tuple(dense(ref, None) for ref in REFS), other_bytes=OTHER)
STORE = Count("float32")
GIVEN = recipe(
    budget={"bits_per_weight": 4, "bits": [2, 3, 4, 8], "group_sizes": [16], "ranks": 3},
    decompose={"rank_multiple": 2},
)


def tries(seed: int = 0, price: float = 1.0) -> dict[str, LayerTried]:
    """All forms of all layers; the loss falls by four with every bit, more or less."""
    rng = np.random.default_rng(seed)

    def losses(offers: Sequence[Offer], weights: int) -> list[tuple[Offer, float]]:
        return [
            (offer, price * 4.0 ** (-8 * offer.bytes / weights) * rng.uniform(0.5, 2))
            for offer in offers
        ]

    found = {}
    for ref in REFS:
        floats, *others = layer_offers(ref, GIVEN, STORE)
        weights = ref.shape[0] * ref.shape[1]
        found[ref.name] = LayerTried(
            [(floats, 0.0), *losses(others, weights)],
            losses(uniform_offers(ref, GIVEN, STORE), weights),
        )
    return found


def offering(tried: dict[str, LayerTried]) -> Offering:
    return Offering.of(BASE, tried, STORE, {})


def is_a_front(choices: Sequence[Choice]) -> bool:
    sizes = [choice.layer_bytes for choice in choices]
    losses = [choice.loss for choice in choices]
    return sizes == sorted(set(sizes), reverse=True) and losses == sorted(losses)


@pytest.mark.parametrize("seed", range(4))
def test_the_row_that_is_taken_by_default(seed: int) -> None:
    offered = offering(tries(seed, price=30))
    found = front(offered)
    assert 10 < len(found) <= 25
    assert is_a_front(found)
    assert 7 < found[0].bits_per_weight <= 8.5
    assert found[-1].loss <= math.log(2)
    smaller = choose(offered, LossBound(math.log(2)))
    assert found[-1].layer_bytes == smaller.layer_bytes
    for choice in found:
        again = choose(offered, Budget("bytes", choice.layer_bytes))
        assert choice.loss == pytest.approx(again.loss)


def test_given_budgets() -> None:
    offered = offering(tries())
    found = front(offered, [5.0, 3.5, 32.0, 0.1, 5.0])
    assert len(found) == 3
    for choice, bits in zip(found, [32, 5, 3.5], strict=True):
        assert bits - 0.3 < choice.bits_per_weight <= bits
        assert choice.layer_bytes == sum(layer.predicted_bytes for layer in choice.plan)


def test_budgets_out_of_reach_are_no_points() -> None:
    assert front(offering(tries()), [0.01, 0.1]) == []


def test_reach() -> None:
    low, high = reach(offering(tries()))
    assert high == 32
    (smallest,) = front(offering(tries()), [low])
    assert smallest.bits_per_weight == pytest.approx(low)


def test_a_front_without_a_choice_is_a_point() -> None:
    offered = offering({})
    (only,) = front(offered)
    assert only.bits_per_weight == 32
    assert uniform_models({}, offered) == []


def test_a_front_of_models_that_all_lose_much() -> None:
    tried = {
        name: LayerTried([(offer, loss + 1) for offer, loss in found.tried if loss])
        for name, found in tries().items()
    }
    found = front(offering(tried))
    assert len(found) > 3
    assert is_a_front(found)


def by_name(models: Sequence[Uniform]) -> dict[str, Uniform]:
    return {model.name: model for model in models}


def test_plain_quantization_is_the_sum_of_its_layers() -> None:
    tried = tries()
    models = uniform_models(tried, offering(tried))
    names = {f"{method} {bits}" for method in ("RTN", "GPTQ") for bits in (2, 3, 4, 8)} | {"NF4"}
    assert set(by_name(models)) == names
    sizes = [model.layer_bytes for model in models]
    assert sizes == sorted(sizes, reverse=True)
    model = by_name(models)["GPTQ 3"]
    parts = [
        (offer.bytes, loss)
        for found in tried.values()
        for offer, loss in found.uniform
        if (spec := offer.layer.quantization["weight"]) and (spec.method, spec.bits) == ("gptq", 3)
    ]
    assert len(parts) == len(REFS)
    assert model.layer_bytes == sum(size for size, _ in parts)
    assert model.loss == pytest.approx(sum(loss for _, loss in parts))
    assert model.total_bytes == model.layer_bytes + OTHER
    weights = sum(ref.shape[0] * ref.shape[1] for ref in REFS)
    assert model.bits_per_weight == 8 * model.layer_bytes / weights


def test_what_one_layer_could_not_be_quantized_with_is_no_model() -> None:
    tried = tries()
    name = REFS[1].name
    kept = [
        (offer, loss)
        for offer, loss in tried[name].uniform
        if (spec := offer.layer.quantization["weight"]) and spec.bits != 3
    ]
    tried[name] = LayerTried(tried[name].tried, kept)
    names = set(by_name(uniform_models(tried, offering(tried))))
    assert {"RTN 4", "NF4", "GPTQ 2"} <= names
    assert not {"RTN 3", "GPTQ 3"} & names


def test_layers_that_no_token_reaches_stay_as_they_are() -> None:
    tried = tries()
    tried[REFS[2].name] = LayerTried()
    whole = by_name(uniform_models(tries(), offering(tries())))["RTN 4"]
    model = by_name(uniform_models(tried, offering(tried)))["RTN 4"]
    part = next(
        offer.bytes
        for offer, _ in tries()[REFS[2].name].uniform
        if (spec := offer.layer.quantization["weight"]) and (spec.method, spec.bits) == ("rtn", 4)
    )
    assert model.layer_bytes == whole.layer_bytes - part + 4 * 32 * 32
    assert model.loss < whole.loss


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []

    def plot(choices: object, uniform: object, folder: Path, name: str) -> list[Path]:
        drawn.append((choices, uniform, name))
        return [folder / f"{name}.png"]

    monkeypatch.setattr("asvd_q.report.budget.plot_budgets", plot)
    tried = tries()
    choices, uniform = front(offering(tried)), uniform_models(tried, offering(tried))
    paths = write_front(choices, uniform, tmp_path / "search")
    assert [path.name for path in paths] == ["frontier.json", "frontier.png"]
    content = json.loads(paths[0].read_text())
    assert content == front_content(choices, uniform)
    assert len(content) == len(choices) + len(uniform) == len(front_table(choices, uniform).rows)
    sizes = [point["layer_bytes"] for point in content]
    assert sizes == sorted(sizes, reverse=True)
    keys = {"name", "bits_per_weight", "layer_bytes", "bytes", "predicted_loss"}
    assert all(keys <= set(point) for point in content)
    assert [point["name"] for point in content].count("budget") == len(choices)
    ((spots, methods, name),) = drawn  # type: ignore[misc]
    assert (len(spots), set(methods), name) == (len(choices), {"RTN", "GPTQ", "NF4"}, "frontier")
