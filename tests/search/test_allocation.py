"""Allocation against brute force, a plain scan of all cuts, and an independent solver."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from asvd_q.errors import RankError
from asvd_q.search.allocation import Budget, LossBound, Method, Target, Unit, allocate
from asvd_q.search.candidates import Candidate
from asvd_q.search.knapsack import solve_knapsack

Layers = dict[str, list[Candidate]]
UNITS: list[Unit] = ["parameters", "bytes"]
METHODS: list[Method] = ["strs", "optimal"]


@st.composite
def models(draw: st.DrawFn) -> Layers:
    """3 to 6 layers of 2 to 5 forms; few distinct numbers, so that ties are common."""
    random_numbers = random.Random(draw(st.integers(0, 2**32)))
    coarse = draw(st.booleans())
    layers: Layers = {}
    for index in range(draw(st.integers(3, 6))):
        count = draw(st.integers(1, 4))
        top = 10 if coarse else 10**6
        costs = sorted(random_numbers.sample(range(1, top), count), reverse=True)
        losses = sorted(
            random_numbers.randint(0, 6) / 8 if coarse else random_numbers.random() ** 3
            for _ in range(count)
        )
        extra = random_numbers.randint(0, 5)
        dense = Candidate(None, top, 2 * top + 5, 0.0)
        layers[f"layer{index}"] = [dense] + [
            Candidate(count - rank, cost, 2 * cost + extra, loss)
            for rank, (cost, loss) in enumerate(zip(costs, losses, strict=True))
        ]
    return layers


def total(chosen: Sequence[Candidate] | Mapping[str, Candidate], unit: str) -> float:
    forms = chosen.values() if isinstance(chosen, Mapping) else chosen
    return math.fsum(getattr(form, unit) for form in forms)


def everything(layers: Layers) -> Iterator[tuple[Candidate, ...]]:
    return itertools.product(*layers.values())


def extent(layers: Layers, unit: Unit) -> tuple[float, float]:
    smallest = [min(forms, key=lambda form: getattr(form, unit)) for forms in layers.values()]
    return total(smallest, unit), total([forms[0] for forms in layers.values()], unit)


def cuts(layers: Layers, unit: Unit) -> list[dict[str, Candidate]]:
    """The choice of every cut, without a search: after k candidates, k = 0 …"""
    ranking = sorted(
        ((name, form) for name, forms in layers.items() for form in forms[1:]),
        key=lambda pair: pair[1].loss,
    )
    result = [{name: forms[0] for name, forms in layers.items()}]
    for name, form in ranking:
        chosen = dict(result[-1])
        chosen[name] = min(chosen[name], form, key=lambda one: getattr(one, unit))
        result.append(chosen)
    return result


@given(models(), st.sampled_from(UNITS), st.floats(0, 1.1))
@settings(max_examples=200, deadline=None)
def test_optimal_under_a_budget_is_the_best_of_all_choices(
    layers: Layers, unit: Unit, share: float
) -> None:
    least, most = extent(layers, unit)
    budget = least + share * (most - least)
    best = min(
        total(choice, "loss") for choice in everything(layers) if total(choice, unit) <= budget
    )
    result = allocate(layers, target=Budget(unit, budget), method="optimal")
    used = total(result.chosen, unit)
    assert used <= budget
    assert result.loss == pytest.approx(best, abs=1e-12)
    assert result.slack == budget - used
    assert result.step is None or result.slack < result.step


@given(models(), st.sampled_from(UNITS), st.floats(0, 1.1))
@settings(max_examples=200, deadline=None)
def test_optimal_under_a_bound_is_the_smallest_and_then_the_best(
    layers: Layers, unit: Unit, share: float
) -> None:
    bound = share * total([max(forms, key=lambda f: f.loss) for forms in layers.values()], "loss")
    allowed = [c for c in everything(layers) if total(c, "loss") <= bound * (1 + 1e-12)]
    best = min((total(choice, unit), total(choice, "loss")) for choice in allowed)
    result = allocate(layers, target=LossBound(bound, unit), method="optimal")
    assert total(result.chosen, unit) == best[0]
    assert result.loss == pytest.approx(best[1], abs=1e-12)
    assert result.loss <= bound * (1 + 1e-12)
    assert result.step is None or result.slack < result.step + 1e-12


@given(models(), st.sampled_from(UNITS), st.floats(0, 1.1))
@settings(max_examples=200, deadline=None)
def test_strs_is_the_first_cut_of_a_scan_that_meets_the_budget(
    layers: Layers, unit: Unit, share: float
) -> None:
    least, most = extent(layers, unit)
    budget = least + share * (most - least)
    scan = cuts(layers, unit)
    wanted = next(chosen for chosen in scan if total(chosen, unit) <= budget)
    result = allocate(layers, target=Budget(unit, budget), method="strs")
    assert dict(result.chosen) == wanted
    assert total(result.chosen, unit) <= budget
    assert (result.step is None) == (wanted == scan[0])
    assert result.step is None or result.slack < result.step


@given(models(), st.sampled_from(UNITS), st.floats(0, 1.1))
@settings(max_examples=200, deadline=None)
def test_strs_is_the_last_cut_of_a_scan_under_the_bound(
    layers: Layers, unit: Unit, share: float
) -> None:
    bound = share * total([max(forms, key=lambda f: f.loss) for forms in layers.values()], "loss")
    allowed = [
        chosen for chosen in cuts(layers, unit) if total(chosen, "loss") <= bound * (1 + 1e-12)
    ]
    result = allocate(layers, target=LossBound(bound, unit), method="strs")
    assert dict(result.chosen) == allowed[-1]
    assert result.loss <= bound * (1 + 1e-12)
    assert result.step is None or result.slack < result.step + 1e-12


@given(models(), st.sampled_from(UNITS), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_optimal_never_loses_more_than_strs(layers: Layers, unit: Unit, share: float) -> None:
    least, most = extent(layers, unit)
    target = Budget(unit, least + share * (most - least))
    paper = allocate(layers, target=target, method="strs")
    best = allocate(layers, target=target, method="optimal")
    assert best.loss <= paper.loss + 1e-12


@given(models(), st.sampled_from(METHODS), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_totals_are_those_of_the_chosen_and_repeat(
    layers: Layers, method: Method, share: float
) -> None:
    least, most = extent(layers, "bytes")
    target: Target = Budget("bytes", least + share * (most - least))
    result = allocate(layers, target=target, method=method)
    assert list(result.chosen) == list(layers)
    assert result.parameters == total(result.chosen, "parameters")
    assert result.bytes == total(result.chosen, "bytes")
    assert result.loss == total(result.chosen, "loss")
    assert allocate(layers, target=target, method=method) == result


SMALL: Layers = {
    "a": [Candidate(None, 100, 200, 0.0), Candidate(3, 60, 120, 0.1), Candidate(1, 20, 40, 0.9)],
    "b": [Candidate(None, 100, 200, 0.0), Candidate(2, 40, 80, 0.2)],
}


@pytest.mark.parametrize("method", METHODS)
def test_an_unreachable_budget_says_what_can_be_reached(method: Method) -> None:
    with pytest.raises(RankError, match=r"59 parameters cannot be reached.* 60 .* to 200 "):
        allocate(SMALL, target=Budget("parameters", 59), method=method)
    assert allocate(SMALL, target=Budget("parameters", 60), method=method).parameters == 60


@pytest.mark.parametrize("method", METHODS)
def test_the_range_is_given_in_the_words_of_the_caller(method: Method) -> None:
    target = Budget("parameters", 20, describe=lambda amount: f"kept ratio {amount / 200:.2f}")
    with pytest.raises(
        RankError, match=r"kept ratio 0\.10 .* kept ratio 0\.30 to kept ratio 1\.00"
    ):
        allocate(SMALL, target=target, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("limit", [-0.1, math.nan])
def test_a_bound_below_the_dense_model_is_unreachable(method: Method, limit: float) -> None:
    with pytest.raises(RankError, match=r"from 0 nats per token to 1\.1 nats per token"):
        allocate(SMALL, target=LossBound(limit), method=method)


@pytest.mark.parametrize("method", METHODS)
def test_beyond_the_ends_all_is_dense_or_all_is_smallest(method: Method) -> None:
    large = allocate(SMALL, target=Budget("bytes", 10**9), method=method)
    assert (large.bytes, large.loss, large.step) == (400, 0.0, None)
    small = allocate(SMALL, target=LossBound(5.0), method=method)
    assert (small.bytes, small.step) == (120, None)


def test_a_remainder_goes_to_forms_that_are_not_predicted_to_lose_more() -> None:
    """Rank 5 of layer a is predicted to lose nothing, which is noise: dense, if it is paid for."""
    layers: Layers = {
        "a": [Candidate(None, 100, 200, 0.0), Candidate(5, 60, 120, 0.0)],
        "b": SMALL["b"],
    }
    assert allocate(layers, target=Budget("bytes", 399), method="optimal").chosen["a"].rank == 5
    assert allocate(layers, target=Budget("bytes", 400), method="optimal").chosen["a"].rank is None
    smallest = allocate(layers, target=LossBound(0.0), method="optimal")
    assert [form.rank for form in smallest.chosen.values()] == [5, None]


def test_layers_without_candidates_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least one candidate"):
        allocate({"a": []}, target=Budget("bytes", 1), method="strs")


def large_model(seed: int, layers: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Curves as they are measured, 40 ranks each, in bytes without a common factor."""
    numbers = np.random.default_rng(seed)
    shapes = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    classes = []
    for index in range(layers):
        rows, columns = shapes[index % len(shapes)]
        kept = np.linspace(0.3, 0.97, 39)[::-1]
        costs = 2 * (kept * rows * columns) // 64 * 64 + numbers.integers(0, 4096, 39)
        size, power = 0.01 * np.exp(numbers.normal()), 1 + 3 * numbers.random()
        losses = size * (1 - 0.9 * kept) ** power * (1 + 0.05 * numbers.random(39))
        losses = np.maximum.accumulate(losses)
        classes.append((np.append(2 * rows * columns, costs), np.append(0.0, losses)))
    return classes


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_same_optimum_as_a_mixed_integer_solver(share: float) -> None:
    classes = large_model(7, 14)
    costs, losses = (np.concatenate(part) for part in zip(*classes, strict=True))
    owner = np.repeat(np.arange(len(classes)), [len(cost) for cost, _ in classes])
    budget = int(share * sum(cost[0] for cost, _ in classes))
    one_each = (owner == np.arange(len(classes))[:, None]).astype(float)
    solution = milp(
        losses * 100,
        integrality=np.ones(len(costs)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs[None] / 1e6, -np.inf, budget / 1e6),
        ],
        options={"mip_rel_gap": 0},
    )
    chosen = solve_knapsack(classes, budget)
    ours = sum(loss[item] for (_, loss), item in zip(classes, chosen, strict=True))
    assert sum(cost[item] for (cost, _), item in zip(classes, chosen, strict=True)) <= budget
    assert ours * 100 == pytest.approx(solution.fun, rel=1e-6)


def test_224_layers_of_40_ranks_take_seconds() -> None:
    classes = large_model(3, 224)
    before = time.process_time()
    for share in (0.9, 0.7, 0.5):
        budget = share * sum(float(cost[0]) for cost, _ in classes)
        chosen = solve_knapsack(classes, budget)
        used = sum(float(cost[item]) for (cost, _), item in zip(classes, chosen, strict=True))
        assert used <= budget
    assert time.process_time() - before < 15
