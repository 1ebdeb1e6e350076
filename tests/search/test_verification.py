"""Predicted beside measured: what is measured, when, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from asvd_q.preparation import Prepared, prepare
from asvd_q.recipe import Recipe, SearchSection
from asvd_q.report.plots import plot_predictions
from asvd_q.report.search import search_summary, write_search
from asvd_q.search.allocation import Budget, LossBound, Method, Unit, allocate
from asvd_q.search.candidates import Candidate
from asvd_q.search.joint import measure_jointly
from asvd_q.search.ranks import SearchResult
from asvd_q.search.scoring import Metric
from asvd_q.search.verification import allocations_around, metric_of
from tests.support import WREN

Search = Callable[..., SearchResult]

LAYERS = {
    f"layer{index}": [
        Candidate(None, 1000, 2000, 0.0),
        *(Candidate(rank, 10 * rank, 20 * rank + 7, (100 - rank) / 1000) for rank in (80, 40, 10)),
    ]
    for index in range(6)
}


@pytest.mark.parametrize("method", ["strs", "optimal"])
@pytest.mark.parametrize("unit", ["parameters", "bytes"])
def test_allocations_on_both_sides(unit: Unit, method: Method) -> None:
    total = sum(getattr(forms[0], unit) for forms in LAYERS.values())
    allocation = allocate(LAYERS, target=Budget(unit, 0.6 * total), method=method)
    others = allocations_around(LAYERS, allocation, unit, method)
    sizes = [getattr(other, unit) for other in others]
    assert len(others) == 5
    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[2] > getattr(allocation, unit) > sizes[3]
    assert len({tuple(other.ranks.items()) for other in (allocation, *others)}) == 6


def test_nothing_around_the_dense_model_and_nothing_beyond_the_smallest() -> None:
    dense = allocate(LAYERS, target=LossBound(0.0), method="optimal")
    assert allocations_around(LAYERS, dense, "bytes", "optimal") == []
    smallest = allocate(LAYERS, target=LossBound(9.0), method="optimal")
    others = allocations_around(LAYERS, smallest, "bytes", "optimal")
    assert all(other.bytes > smallest.bytes for other in others)


@pytest.mark.parametrize(
    ("fields", "metric"),
    [
        ({}, "kl"),
        ({"labels": "corpus"}, "perplexity"),
        ({"sensitivity": "exact"}, "perplexity"),
        ({"sensitivity": "exact", "metric": "kl", "labels": "corpus"}, "kl"),
    ],
)
def test_what_is_measured_is_what_was_predicted(fields: dict[str, Any], metric: Metric) -> None:
    assert metric_of(SearchSection(kept_ratio=0.5, **fields)) == metric
    assert metric_of(SearchSection(perplexity=5.0, **fields)) == "perplexity"


WHAT: dict[str, Any] = {
    "model": {"path": str(WREN)},
    "calibration": {"corpus": "python-docs", "samples": 2, "window": 64},
    "decompose": {"rank_multiple": 8, "include": ["*.0.mlp.*", "*.3.self_attn.*"]},
}


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(Recipe.model_validate({**WHAT, "search": {"kept_ratio": 0.9}}))


@pytest.fixture
def run_search(search_in: Search) -> Search:
    def run(*, known_only: bool = False, **search: Any) -> SearchResult:
        recipe = Recipe.model_validate({**WHAT, "search": {"kept_ratio": 0.93, **search}})
        return search_in(recipe, known_only=known_only)

    return run


@pytest.mark.parametrize(("labels", "metric"), [("sampled", "kl"), ("corpus", "perplexity")])
def test_measured_as_measure_jointly_measures(
    labels: str, metric: Metric, run_search: Search, prepared: Prepared, windows: Tensor
) -> None:
    result = run_search(labels=labels)
    found = result.verification
    assert found is not None
    assert found.metric == metric
    assert found.chosen.allocation is result.allocation
    assert len(found.others) == 5
    everything = [found.chosen, *found.others]
    section = prepared.recipe.decompose
    assert section is not None
    expected = measure_jointly(
        prepared.model(),
        windows,
        [one.allocation.ranks for one in everything],
        section,
        metric=metric,
        batch_size=4,
    )
    assert [one.loss for one in everything] == pytest.approx(list(expected.increases), abs=1e-9)
    assert (found.perplexities is None) == (metric == "kl")


def test_measured_once_and_never_when_only_the_known_is_wanted(
    run_search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = run_search(verify=False)
    assert off.verification is None
    unmeasured = run_search(known_only=True)
    assert unmeasured.verification is None
    assert unmeasured.ranks == off.ranks
    measured = run_search()
    assert measured.verification is not None
    assert measured.ranks == off.ranks

    def run(*args: object, **kwargs: object) -> None:
        raise AssertionError("work was repeated")

    monkeypatch.setattr("asvd_q.search.measurements.measure_jointly", run)
    assert run_search() == measured
    assert run_search(known_only=True) == measured
    assert run_search(verify=False).verification is None


@pytest.mark.parametrize("labels", ["sampled", "corpus"])
def test_the_report_has_both(labels: str, run_search: Search, tmp_path: Path) -> None:
    result = run_search(labels=labels)
    found = result.verification
    assert found is not None
    write_search(result, tmp_path)
    content = json.loads((tmp_path / "search.json").read_text())["verification"]
    assert content["predicted_loss"] == result.allocation.loss
    assert content["measured_loss"] == found.chosen.loss
    sizes = [one["bytes"] for one in content["allocations"]]
    assert sizes == sorted(sizes, reverse=True)
    (chosen,) = (one for one in content["allocations"] if one["chosen"])
    assert chosen["bytes"] == result.allocation.bytes
    lines = search_summary(result)
    assert f"{result.allocation.loss:.5f}" in lines[0]
    assert f"{found.chosen.loss:.5f}" in lines[1]
    if labels == "corpus":
        assert content["perplexity"] / content["dense_perplexity"] - 1 == pytest.approx(
            float(lines[1].rsplit("(", 1)[1].rstrip("%)")) / 100, abs=1e-4
        )
    else:
        assert content["perplexity"] is None
        assert "divergence" in lines[1]
    plots = [tmp_path / f"predicted-measured.{suffix}" for suffix in ("png", "svg")]
    assert all(plot.stat().st_size > 1000 for plot in plots)
    unverified = run_search(labels=labels, verify=False)
    write_search(unverified, tmp_path)
    assert not any(plot.exists() for plot in plots)
    assert json.loads((tmp_path / "search.json").read_text())["verification"] is None
    assert len(search_summary(unverified)) == 1


def test_plots_with_gains_and_without_company_and_the_same_bytes_twice(tmp_path: Path) -> None:
    points = [(0.0, -0.001), (0.1, 0.2)]
    first = [path.read_bytes() for path in plot_predictions(points, (0.05, 0.02), tmp_path)]
    second = [path.read_bytes() for path in plot_predictions(points, (0.05, 0.02), tmp_path)]
    assert first == second
    alone = plot_predictions([], (0.0, 0.0), tmp_path, unit="no unit")
    assert all(path.stat().st_size > 1000 for path in alone)
