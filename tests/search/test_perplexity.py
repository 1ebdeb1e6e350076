"""The target `perplexity`: a bound on what is measured, kept and found again."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from asvd_q.errors import RankError, RecipeError
from asvd_q.preparation import Prepared, prepare
from asvd_q.recipe import DecomposeSection, Recipe
from asvd_q.search.joint import measure_jointly
from asvd_q.search.ranks import SearchResult
from tests.support import WREN

Search = Callable[..., SearchResult]

WHAT: dict[str, Any] = {
    "model": {"path": str(WREN)},
    "calibration": {"corpus": "python-docs", "samples": 2, "window": 64},
    "decompose": {"rank_multiple": 8, "include": ["*.0.mlp.*", "*.3.self_attn.*", "*.5.mlp.*"]},
}


def recipe_for(perplexity: str | float, **search: Any) -> Recipe:
    return Recipe.model_validate({**WHAT, "search": {"perplexity": perplexity, **search}})


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(recipe_for("+2 %"))


@pytest.fixture
def run_search(search_in: Search) -> Search:
    """Searches for a target."""

    def run(
        perplexity: str | float, *, known_only: bool = False, place: str = "search", **search: Any
    ) -> SearchResult:
        recipe = recipe_for(perplexity, **search)
        return search_in(recipe, known_only=known_only, place=place)

    return run


@pytest.mark.parametrize("labels", ["corpus", "sampled"])
@pytest.mark.parametrize(
    ("target", "rise", "method"), [("+5 %", 0.05, "optimal"), ("+0.5%", 0.005, "strs")]
)
def test_the_measured_perplexity_stays_under_the_bound(
    target: str,
    rise: float,
    method: str,
    labels: str,
    run_search: Search,
    prepared: Prepared,
    windows: Tensor,
) -> None:
    found = run_search(target, method=method, labels=labels)
    assert found.ranks
    assert found.verification is not None
    assert found.verification.chosen.allocation == found.allocation
    dense, after = found.verification.perplexities or (0.0, 0.0)
    assert after <= dense * (1 + rise) * (1 + 1e-12)
    again = measure_jointly(
        prepared.model(), windows, [found.ranks], DecomposeSection(), batch_size=2
    )
    assert math.exp(again.dense) == pytest.approx(dense, rel=1e-5)
    assert math.exp(again.dense + again.increases[0]) == pytest.approx(after, rel=1e-5)
    for other in found.verification.others:
        over = other.loss > math.log1p(rise)
        assert over or other.allocation.bytes >= found.allocation.bytes


def test_a_repeated_search_runs_nothing(
    run_search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_search("+3 %")

    def run(*args: object, **kwargs: object) -> None:
        raise AssertionError("work was repeated")

    monkeypatch.setattr("asvd_q.search.sensitivities.fast_losses", run)
    monkeypatch.setattr("asvd_q.search.measurements.measure_jointly", run)
    assert run_search("+3 %") == first
    assert run_search("+3 %", known_only=True) == first


def test_an_interrupted_search_goes_on_with_its_measurements(
    run_search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run_search("+3 %", place="undisturbed")
    calls: list[int] = []

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(args[2]))
        if len(calls) == 2:
            raise MemoryError
        return measure_jointly(*args, **kwargs)

    monkeypatch.setattr("asvd_q.search.measurements.measure_jointly", spy)
    with pytest.raises(MemoryError):
        run_search("+3 %")
    with pytest.raises(RecipeError, match="run `asvd-q search`"):
        run_search("+3 %", known_only=True)
    resumed = run_search("+3 %")
    assert resumed == undisturbed
    assert calls[2] == calls[1]  # what the first pass measured is not measured again


def test_a_number_and_what_can_be_reached(run_search: Search) -> None:
    loose = run_search(1e9)
    assert loose.verification is not None
    dense, worst = loose.verification.perplexities or (0.0, 0.0)
    for name, found in loose.allocation.chosen.items():
        assert found.rank == min(c.rank for c in loose.candidates[name] if c.rank is not None)
    between = run_search((dense * worst) ** 0.5)
    assert between.verification is not None
    assert (between.verification.perplexities or (0.0, 0.0))[1] <= (dense * worst) ** 0.5
    assert loose.allocation.bytes < between.allocation.bytes
    for number in (dense * 0.999, 1e-3):
        with pytest.raises(RankError, match=rf"search\.perplexity.*{dense:.4f}.*{worst:.4f}"):
            run_search(number)


def test_predictions_of_another_kind_share_the_measurements(
    run_search: Search, tmp_path: Path
) -> None:
    run_search("+3 %")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    run_search("+3 %", labels="corpus")
    assert all(path.read_bytes() == content for path, content in before.items())
    # Two folders of sensitivities, and one of measurements.
    assert len({path.parent for path in tmp_path.rglob("*.json")}) == 3
