"""Candidates: real savings, monotone losses, nothing dominated, dense always."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asvd_q.errors import NumericsError, RankError
from asvd_q.models import WeightRef
from asvd_q.plan import factor_parameters
from asvd_q.search.candidates import (
    Candidate,
    make_candidates,
    monotone_losses,
    ratio_ranks,
)
from asvd_q.search.uniform import break_even_rank

SHAPE = (256, 256)
WEIGHT = WeightRef("model.layers.3.mlp.up_proj", "model.layers.3.mlp.up_proj", SHAPE, 3)
DENSE_BYTES = 2 * 256 * 256


def two_bytes_each(rank: int) -> int:
    return 2 * factor_parameters(SHAPE, rank)


def ranks_of(candidates: tuple[Candidate, ...]) -> list[int | None]:
    return [candidate.rank for candidate in candidates]


def test_dense_first_then_falling_ranks_with_what_they_cost() -> None:
    candidates = make_candidates(WEIGHT, {32: 0.5, 96: 0.1}, DENSE_BYTES, two_bytes_each)
    assert candidates == (
        Candidate(None, 65536, 131072, 0.0),
        Candidate(96, 49152, 98304, 0.1),
        Candidate(32, 16384, 32768, 0.5),
    )


def test_noise_below_zero_becomes_zero_and_a_dip_is_filled() -> None:
    """Rank 96 measured better than 112: the lower rank must not look cheaper than the higher."""
    losses = monotone_losses({32: 0.3, 64: 0.05, 96: -0.02, 112: 0.01, 120: -0.1})
    assert losses == {120: 0.0, 112: 0.01, 96: 0.01, 64: 0.05, 32: 0.3}


def test_of_ranks_that_lose_the_same_only_the_smallest_is_offered() -> None:
    losses = {32: 0.3, 64: 0.05, 96: -0.02, 112: 0.01}
    candidates = make_candidates(WEIGHT, losses, DENSE_BYTES, two_bytes_each)
    assert ranks_of(candidates) == [None, 96, 64, 32]


def test_ranks_that_save_nothing_are_not_offered_but_still_count_for_the_curve() -> None:
    candidates = make_candidates(WEIGHT, {128: 0.2, 64: 0.1}, DENSE_BYTES, two_bytes_each)
    assert ranks_of(candidates) == [None, 64]
    assert candidates[1].loss == 0.2


def test_parameters_saved_are_not_enough_when_the_bytes_grow() -> None:
    """A dense layer of 4-bit codes is smaller than its factors in 16 bits."""
    candidates = make_candidates(WEIGHT, {32: 0.1, 96: 0.0}, 256 * 256 // 2, two_bytes_each)
    assert ranks_of(candidates) == [None]


def test_a_rank_that_costs_more_bytes_than_a_better_one_is_dropped() -> None:
    """Padding in a format can make a lower rank take more."""
    sizes = {96: 90_000, 64: 95_000, 32: 30_000}
    losses = {96: 0.1, 64: 0.1, 32: 0.5}
    candidates = make_candidates(WEIGHT, losses, DENSE_BYTES, sizes.__getitem__)
    assert ranks_of(candidates) == [None, 96, 64, 32]  # 64 has fewer parameters
    sizes[64] = 90_000
    candidates = make_candidates(WEIGHT, losses, DENSE_BYTES, sizes.__getitem__)
    assert ranks_of(candidates) == [None, 64, 32]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_the_layer(loss: float) -> None:
    with pytest.raises(NumericsError, match=r"model\.layers\.3\.mlp\.up_proj.*rank 32"):
        make_candidates(WEIGHT, {32: loss}, DENSE_BYTES, two_bytes_each)


@pytest.mark.parametrize("rank", [0, 257])
def test_a_rank_outside_the_shape_is_refused(rank: int) -> None:
    with pytest.raises(RankError, match=r"outside 1 … 256"):
        make_candidates(WEIGHT, {rank: 0.1}, DENSE_BYTES, two_bytes_each)


@given(st.dictionaries(st.integers(1, 256), st.floats(-1, 1), max_size=12))
def test_candidates_form_a_strict_trade_off(losses: dict[int, float]) -> None:
    dense, *rest = make_candidates(WEIGHT, losses, DENSE_BYTES, two_bytes_each)
    assert dense == Candidate(None, 65536, DENSE_BYTES, 0.0)
    assert all(one.parameters < dense.parameters and one.bytes < dense.bytes for one in rest)
    for higher, lower in pairwise(rest):
        assert higher.parameters > lower.parameters
        assert higher.bytes > lower.bytes
        assert 0 <= higher.loss < lower.loss
    for one in rest:
        assert one.rank is not None
        assert one.loss >= losses[one.rank]


def test_the_default_grid_of_a_square_layer() -> None:
    assert ratio_ranks((1024, 1024)) == [192, 256, 320, 352, 416, 448]  # half a multiple goes up


def test_ratios_that_round_to_one_rank_give_it_once() -> None:
    assert ratio_ranks((256, 256), [0.4, 0.5, 0.6, 0.9], 32) == [64, 96]


def test_ratios_of_one_and_more_mean_dense() -> None:
    assert ratio_ranks((256, 256), [0.5, 1.0, 2.0], 32) == [64]


def test_a_layer_too_small_for_one_multiple_has_no_rank() -> None:
    assert ratio_ranks((64, 64), [0.4, 0.9], 32) == []
    assert ratio_ranks((65, 65), [0.4, 0.9], 32) == [32]


def test_a_ratio_of_nothing_is_refused() -> None:
    with pytest.raises(RankError, match="between 0 and 1"):
        ratio_ranks((64, 64), [0.0])


@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.lists(st.floats(0.01, 0.999), min_size=1, max_size=8),
    st.sampled_from([1, 8, 32, 64]),
)
def test_every_rank_is_a_multiple_below_break_even(
    shape: tuple[int, int], ratios: list[float], multiple: int
) -> None:
    ranks = ratio_ranks(shape, ratios, multiple)
    assert ranks == sorted(set(ranks))
    for rank in ranks:
        assert rank >= multiple
        assert rank % multiple == 0
        assert factor_parameters(shape, rank) < shape[0] * shape[1]
    for ratio in ratios:
        wanted = ratio * break_even_rank(shape)
        if multiple <= wanted <= break_even_rank(shape) - multiple:
            assert min(abs(rank - wanted) for rank in ranks) <= multiple / 2 + 1e-9
