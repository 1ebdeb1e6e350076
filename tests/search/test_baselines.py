"""The literature's allocations: their measures on spectra known by hand, and their budgets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asvd_q.errors import RankError
from asvd_q.plan import factor_parameters
from asvd_q.search.baselines import (
    effective_rank,
    effective_rank_ranks,
    stable_rank,
    stable_rank_sensitivities,
    truncation_loss,
    truncation_loss_ranks,
)
from asvd_q.search.uniform import break_even_rank

SHAPES = {
    f"model.layers.{block}.{kind}": shape
    for block in range(4)
    for kind, shape in [("q_proj", (256, 256)), ("k_proj", (64, 256)), ("up_proj", (704, 256))]
}
TOTAL = sum(rows * columns for rows, columns in SHAPES.values())


def spectra(seed: int) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(seed)
    return {
        name: numbers.uniform(0.5, 20) * np.arange(1, min(shape) + 1) ** -numbers.uniform(0.1, 2)
        for name, shape in SHAPES.items()
    }


def parameters(ranks: dict[str, int | None]) -> int:
    return sum(
        SHAPES[name][0] * SHAPES[name][1] if rank is None else factor_parameters(SHAPES[name], rank)
        for name, rank in ranks.items()
    )


def test_measures_of_flat_and_of_single_spectra() -> None:
    assert effective_rank(np.full(7, 3.0)) == pytest.approx(7)
    assert effective_rank(np.array([5.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_rank(np.zeros(3)) == stable_rank(np.zeros(3)) == 0
    assert stable_rank(np.array([2.0, 2.0, 1.0])) == pytest.approx(9 / 4)
    assert truncation_loss(np.array([5.0, 4.0, 3.0]), 1) == pytest.approx(5)
    assert truncation_loss(np.array([5.0, 4.0, 3.0]), 3) == 0


@pytest.mark.parametrize("method", ["proportional", "lagrange", "truncation"])
@given(st.integers(0, 1000), st.floats(0.2, 1.0), st.sampled_from([1, 8, 16]))
@settings(max_examples=25, deadline=None)
def test_the_budget_is_kept_and_used(method: str, seed: int, ratio: float, multiple: int) -> None:
    budget = int(ratio * TOTAL)
    if method == "truncation":
        ranks = truncation_loss_ranks(spectra(seed), SHAPES, budget, multiple, tokens=4096)
    elif method == "lagrange":
        ranks = effective_rank_ranks(spectra(seed), SHAPES, budget, multiple, "lagrange")
    else:
        ranks = effective_rank_ranks(spectra(seed), SHAPES, budget, multiple)
    assert list(ranks) == list(SHAPES)
    spent = parameters(ranks)
    assert spent <= budget
    for name, rank in ranks.items():
        if rank is not None:
            assert rank % multiple == 0
            raised = min(factor_parameters(SHAPES[name], rank + multiple), math.prod(SHAPES[name]))
            assert spent - factor_parameters(SHAPES[name], rank) + raised > budget


def test_ranks_are_proportional_to_the_effective_rank() -> None:
    shapes = {"a.q_proj": (1000, 1000), "b.q_proj": (1000, 1000)}
    values = {"a.q_proj": np.ones(100), "b.q_proj": np.ones(300)}
    ranks = effective_rank_ranks(values, shapes, 800_000, 1)
    assert ranks == {"a.q_proj": 100, "b.q_proj": 300}
    ranks = effective_rank_ranks(values, shapes, 800_000, 1, "lagrange")
    assert ranks["b.q_proj"] is not None
    assert ranks["b.q_proj"] / (ranks["a.q_proj"] or 1) == pytest.approx(math.sqrt(3), rel=0.02)


def test_a_layer_that_is_full_leaves_its_share_to_the_others() -> None:
    shapes = {"a.q_proj": (1000, 1000), "b.q_proj": (1000, 1000)}
    values = {"a.q_proj": np.ones(10), "b.q_proj": np.ones(900)}
    ranks = effective_rank_ranks(values, shapes, 1_600_000, 1)
    assert ranks == {"a.q_proj": 300, "b.q_proj": None}


def test_removed_shares_are_inverse_to_the_log_of_the_loss() -> None:
    """Two layers of one kind: 1 / log(e + L) of 1/2 and 1/3 give 60 % and 40 % of what goes."""
    shapes = {"a.q_proj": (1000, 1000), "b.q_proj": (1000, 1000)}
    values = {}
    for name, log in [("a.q_proj", 2.0), ("b.q_proj", 3.0)]:
        values[name] = np.zeros(1000)
        values[name][:401] = (math.exp(log) - math.e) * np.array([2.0] * 400 + [1.0])
    ranks = truncation_loss_ranks(values, shapes, 1_600_000, 1)
    removed = {name: 1 - (rank or 500) / 500 for name, rank in ranks.items()}
    assert removed == pytest.approx({"a.q_proj": 0.24, "b.q_proj": 0.16}, abs=0.003)


def test_a_budget_below_one_multiple_each_is_refused() -> None:
    with pytest.raises(RankError, match="rank 32 in every layer takes"):
        effective_rank_ranks(spectra(0), SHAPES, 1000, 32)


def test_stable_rank_keeps_the_published_order() -> None:
    values = spectra(3)
    ranks = {name: [8, 16, 32] for name in SHAPES}
    ours = stable_rank_sensitivities(values, SHAPES, ranks)
    published = {
        (name, rank): -math.sqrt(stable_rank(values[name]))
        * (rank / break_even_rank(SHAPES[name])) ** 0.1
        for name in SHAPES
        for rank in ranks[name]
    }
    pairs = list(published)
    assert all(ours[name][rank] > 0 for name, rank in pairs)
    assert sorted(pairs, key=lambda pair: ours[pair[0]][pair[1]]) == sorted(
        pairs, key=lambda pair: published[pair]
    )
