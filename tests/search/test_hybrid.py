"""Predictions corrected where the choice hangs on them: curves, neighbours, rounds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asvd_q.errors import RecipeError
from asvd_q.preparation import Prepared, prepare
from asvd_q.recipe import Recipe
from asvd_q.search import hybrid
from asvd_q.search.allocation import Allocation, Budget, allocate
from asvd_q.search.candidates import Candidate, monotone_losses
from asvd_q.search.context import SearchContext
from asvd_q.search.exact import exact_losses
from asvd_q.search.hybrid import corrected_losses, deciding_ranks, hybrid_sensitivities
from asvd_q.search.ranks import SearchResult
from asvd_q.search.sensitivities import Losses, Ranks
from tests.support import WREN

CURVE = {8: 0.8, 16: 0.4, 24: 0.2, 32: 0.1, 40: 0.05}


def test_a_curve_goes_through_what_was_measured() -> None:
    found = corrected_losses(CURVE, {16: 0.6, 32: 0.05})
    assert found[16] == 0.6
    assert found[32] == 0.05
    # Ratios 1.5 and 0.5: halfway between them 1, and beyond them the nearest.
    assert found[24] == pytest.approx(0.2, rel=1e-4)
    assert found[8] == pytest.approx(1.2, rel=1e-4)
    assert found[40] == pytest.approx(0.025, rel=1e-4)


def test_a_curve_without_measurements_stays() -> None:
    assert corrected_losses(CURVE, {}) == CURVE


@pytest.mark.parametrize("measured", [-0.01, 0.0, 1e-12, 0.5])
@pytest.mark.parametrize("predicted", [-0.01, 0.0, 1e-12])
def test_ratios_of_nothing_stay_in_bounds(predicted: float, measured: float) -> None:
    found = corrected_losses({8: 0.3, 16: 0.2, 24: predicted}, {24: measured})
    assert found[24] == measured
    assert 0.02 <= found[16] <= 2.0
    assert found[8] == pytest.approx(found[16] * 1.5)


@given(
    st.dictionaries(st.integers(1, 60), st.floats(-0.1, 1), min_size=1),
    st.sets(st.integers(0, 59), max_size=4),
    st.floats(0.2, 5),
)
def test_a_common_factor_is_found_from_any_point(
    predicted: dict[int, float], places: set[int], factor: float
) -> None:
    curve = monotone_losses(predicted)
    checked = {rank: factor * curve[rank] for rank in curve if rank % 60 in places}
    found = corrected_losses(predicted, checked)
    assert found.keys() == predicted.keys()
    for rank, loss in curve.items():
        if any(curve[place] > 1e-3 for place in checked) and all(
            curve[place] > 1e-3 for place in checked
        ):
            assert found[rank] == pytest.approx(factor * loss, rel=5e-3)


def on_hull(points: Sequence[tuple[int, float]], one: tuple[int, float]) -> bool:
    """Neither dominated, nor on or above the line between two others."""
    if any(other != one and other[0] <= one[0] and other[1] <= one[1] for other in points):
        return False
    for left, right in itertools.permutations(points, 2):
        if left[0] < one[0] < right[0]:
            rise = (right[1] - left[1]) * (one[0] - left[0])
            if (one[1] - left[1]) * (right[0] - left[0]) >= rise:
                return False
    return True


@given(st.lists(st.integers(1, 200), min_size=2, max_size=9, unique=True), st.randoms(), st.data())
def test_neighbours_are_those_on_the_lower_hull(
    sizes: list[int], numbers: Any, data: st.DataObject
) -> None:
    # Whole numbers: three points on one line are that in every way of computing it.
    losses = sorted(float(numbers.randint(0, 1000)) for _ in sizes[1:])
    sizes.sort(reverse=True)
    forms = [Candidate(None, sizes[0], 2 * sizes[0], 0.0)] + [
        Candidate(size, size, 2 * size, loss) for size, loss in zip(sizes[1:], losses, strict=True)
    ]
    chosen = data.draw(st.sampled_from(forms))
    points = [(form.bytes, form.loss) for form in forms]
    hull = [form for form in forms if on_hull(points, (form.bytes, form.loss))]
    larger = min((f for f in hull if f.bytes > chosen.bytes), key=lambda f: f.bytes, default=None)
    smaller = max((f for f in hull if f.bytes < chosen.bytes), key=lambda f: f.bytes, default=None)
    expected = {form.rank for form in (chosen, larger, smaller) if form is not None} - {None}
    assert deciding_ranks(forms, chosen, "bytes") == expected


TRUE: Losses = {
    f"layer{index}": {rank: (1 + index) * 0.002 * (100 - rank) ** 1.3 for rank in range(10, 100, 5)}
    for index in range(8)
}
PREDICTED: Losses = {
    name: {rank: loss * (0.4 + 0.3 * (index % 5)) for rank, loss in curve.items()}
    for index, (name, curve) in enumerate(TRUE.items())
}


def offer(losses: Losses) -> dict[str, list[Candidate]]:
    return {
        name: [Candidate(None, 100, 200, 0.0)]
        + [Candidate(rank, rank, 2 * rank, loss) for rank, loss in monotone_losses(curve).items()]
        for name, curve in losses.items()
    }


def solve(candidates: Mapping[str, Sequence[Candidate]]) -> Allocation:
    return allocate(candidates, target=Budget("bytes", 900), method="optimal")


def test_rounds_end_when_all_that_was_chosen_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[dict[str, list[int]]] = []

    def measure(context: object, ranks: Ranks, metric: str) -> Losses:
        assert metric == "kl"
        rounds.append({name: list(wanted) for name, wanted in ranks.items()})
        return {name: {rank: TRUE[name][rank] for rank in some} for name, some in ranks.items()}

    monkeypatch.setattr(hybrid, "fast_sensitivities", lambda context, ranks: PREDICTED)
    monkeypatch.setattr(hybrid, "exact_sensitivities", measure)
    ranks = {name: list(curve) for name, curve in TRUE.items()}
    recipe = Recipe.model_validate({**WHAT, "search": {"kept_ratio": 0.5}})
    context = SearchContext(
        recipe, cast(Any, None), cast(Any, None), Path("unused"), lambda *step: None
    )
    losses, checked = hybrid_sensitivities(context, ranks, offer, solve, "bytes")
    assert 1 < len(rounds) <= 3
    assert all(
        set(one[name]) <= set(two[name]) for one, two in itertools.pairwise(rounds) for name in one
    )
    assert all(
        checked[name][rank] == losses[name][rank] for name in checked for rank in checked[name]
    )
    best = solve(offer(TRUE)).loss
    found, naive = (
        sum(TRUE[name][rank] for name, rank in solve(offer(curves)).ranks.items())
        for curves in (losses, PREDICTED)
    )
    assert found < naive
    assert found <= 1.01 * best


WHAT: dict[str, Any] = {
    "model": {"path": str(WREN)},
    "calibration": {"corpus": "python-docs", "samples": 3, "window": 96},
    "decompose": {"rank_multiple": 8, "include": ["*.3.self_attn.*", "*.5.mlp.up_proj"]},
}
Search = Callable[..., SearchResult]


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(Recipe.model_validate({**WHAT, "search": {"kept_ratio": 0.9}}))


@pytest.fixture
def run_search(search_in: Search) -> Search:
    def run(*, known_only: bool = False, place: str = "search", **search: Any) -> SearchResult:
        fields = {"kept_ratio": 0.96, "sensitivity": "hybrid", "verify": False, **search}
        recipe = Recipe.model_validate({**WHAT, "search": fields})
        return search_in(recipe, known_only=known_only, place=place)

    return run


@pytest.mark.parametrize(("labels", "metric"), [("sampled", "kl"), ("corpus", "perplexity")])
def test_what_decides_is_measured_exactly(
    labels: str, metric: Any, run_search: Search, prepared: Prepared, windows: Tensor
) -> None:
    found = run_search(labels=labels)
    section = prepared.recipe.decompose
    assert section is not None
    assert set(found.checked) == set(found.shapes)
    for name, rank in found.ranks.items():
        assert rank in found.checked[name]
    exact = exact_losses(
        prepared.model(),
        windows,
        {name: list(some) for name, some in found.checked.items()},
        section,
        metric=metric,
        batch_size=4,
    )
    for name, losses in exact.items():
        assert dict(found.checked[name]) == pytest.approx(losses, rel=1e-3, abs=3e-6)
        assert {rank: found.losses[name][rank] for rank in losses} == dict(found.checked[name])
    assert all(np.isfinite(list(curve.values())).all() for curve in found.losses.values())


def test_kept_and_not_swayed_by_other_searches(run_search: Search) -> None:
    alone = run_search(place="alone")
    run_search(kept_ratio=0.94)
    with pytest.raises(RecipeError, match="run `asvd-q search`"):
        run_search(known_only=True, kept_ratio=0.93)
    assert run_search() == alone
    assert run_search(known_only=True) == alone


def test_an_interrupted_search_goes_on(run_search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = run_search(place="undisturbed")
    measured: list[str] = []

    def stopping(*args: Any, on_layer: Any, **options: Any) -> Any:
        def note(name: str, losses: dict[int, float]) -> None:
            on_layer(name, losses)
            measured.append(name)
            if len(measured) == 2:
                raise MemoryError

        return exact_losses(*args, on_layer=note, **options)

    monkeypatch.setattr("asvd_q.search.sensitivities.exact_losses", stopping)
    with pytest.raises(MemoryError):
        run_search()
    resumed = run_search()
    assert resumed.ranks == undisturbed.ranks
    assert resumed.losses == undisturbed.losses
    first = measured[: len(undisturbed.shapes)]
    assert len(set(first)) == len(first)  # no layer of the first round twice
