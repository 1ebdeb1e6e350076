"""Uniform and explicit ranks: budgets that are kept, patterns whose last match wins."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asvd_q.errors import RankError
from asvd_q.models import WeightRef
from asvd_q.plan import factor_parameters
from asvd_q.search.uniform import break_even_rank, explicit_ranks, uniform_ranks


def layers(shapes: list[tuple[int, int]]) -> list[WeightRef]:
    names = [f"model.layers.{index}.mlp.up_proj" for index in range(len(shapes))]
    return [
        WeightRef(name, name, shape, index)
        for index, (name, shape) in enumerate(zip(names, shapes, strict=True))
    ]


def pays(shape: tuple[int, int], rank: int) -> bool:
    return factor_parameters(shape, rank) < shape[0] * shape[1]


LLAMA = [(256, 256), (64, 256), (64, 256), (256, 256), (704, 256), (704, 256), (256, 704)]


def parameters(
    shapes: list[tuple[int, int]], ratio: float, multiple: int
) -> tuple[int, list[int | None]]:
    """Parameters that the chosen ranks really keep, and the ranks."""
    weights = layers(shapes)
    choices = uniform_ranks(weights, ratio, multiple)
    assert list(choices) == [weight.name for weight in weights]
    ranks = [choices[weight.name].rank for weight in weights]
    kept = sum(
        rows * columns if rank is None else factor_parameters((rows, columns), rank)
        for (rows, columns), rank in zip(shapes, ranks, strict=True)
    )
    return kept, ranks


@pytest.mark.parametrize("multiple", [1, 8, 32])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.61, 0.75, 0.9, 0.95])
def test_the_budget_is_kept_and_used_up_to_one_step(ratio: float, multiple: int) -> None:
    shapes = LLAMA * 4
    kept, ranks = parameters(shapes, ratio, multiple)
    budget = ratio * sum(rows * columns for rows, columns in shapes)
    assert kept <= budget
    assert all(rank is not None and rank % multiple == 0 for rank in ranks)
    for shape, rank in zip(shapes, ranks, strict=True):
        assert rank is not None
        below = rank < ratio * break_even_rank(shape)
        if below and pays(shape, rank + multiple):
            assert kept + factor_parameters(shape, multiple) > budget


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
def test_with_ranks_of_any_number_hardly_anything_is_left_over(ratio: float) -> None:
    kept, _ = parameters(LLAMA * 4, ratio, 1)
    budget = ratio * sum(rows * columns for rows, columns in LLAMA * 4)
    assert budget - max(rows + columns for rows, columns in LLAMA) < kept <= budget


def test_layers_held_up_by_their_smallest_rank_are_paid_for_by_the_others() -> None:
    """A small layer that wants rank 10 must take 32: the large ones give the difference."""
    shapes = [(64, 256), (64, 256), (512, 512), (512, 512), (8, 8)]
    kept, ranks = parameters(shapes, 0.3, 32)
    assert ranks[:2] == [32, 32]
    assert ranks[4] is None
    assert kept <= 0.3 * sum(rows * columns for rows, columns in shapes)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=12),
    ratio=st.floats(0.01, 0.999),
    multiple=st.sampled_from([1, 2, 8, 32]),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_shapes(shapes: list[tuple[int, int]], ratio: float, multiple: int) -> None:
    kept, ranks = parameters(shapes, ratio, multiple)
    for shape, rank in zip(shapes, ranks, strict=True):
        if rank is None:
            assert not pays(shape, multiple)
            continue
        assert rank % multiple == 0
        assert pays(shape, rank)
        assert rank < ratio * break_even_rank(shape) + multiple
    budget = ratio * sum(rows * columns for rows, columns in shapes)
    # Over the target only where no rank can be lowered any more.
    assert kept <= budget or all(rank in (None, multiple) for rank in ranks)


def test_the_whole_is_left_alone_at_ratio_one() -> None:
    choices = uniform_ranks(layers(LLAMA), 1.0, 32)
    assert all(
        choice.rank is None and choice.reason == "kept_ratio is 1" for choice in choices.values()
    )


def test_a_layer_too_small_for_one_multiple_stays_dense_with_the_reason() -> None:
    (choice,) = uniform_ranks(layers([(64, 64)]), 0.5, 32).values()
    assert choice.rank is None
    assert choice.reason == "factors of rank 32 are not smaller than the layer"


def test_what_rounding_took_goes_back_where_it_took_most() -> None:
    shapes = [(256, 256), (256, 320)]
    # Wishes: 64 exactly, and 71.1, which rounds down to 64 and has the only claim.
    _, ranks = parameters(shapes, 0.5, 1)
    assert ranks == [64, 71]
    _, ranks = parameters([(256, 256), (256, 256)], 0.625, 32)
    # Both wish for 80: one gets 96 and the other 64, which is 160 in all, the budget exactly.
    assert sorted(rank or 0 for rank in ranks) == [64, 96]


def test_no_layers() -> None:
    assert uniform_ranks([], 0.5, 32) == {}


def test_the_last_pattern_that_matches_wins() -> None:
    weights = layers([(64, 96)] * 4)
    ranks = {"*": 8, "model.layers.1.*": 16, "up_proj": 24, "*.3.mlp.*": 32}
    found = explicit_ranks(weights, ranks)
    assert [choice.rank for choice in found.values()] == [24, 24, 24, 32]
    reordered = {"up_proj": 24, "*.3.mlp.*": 32, "model.layers.1.*": 16}
    assert [choice.rank for choice in explicit_ranks(weights, reordered).values()] == [
        24,
        16,
        24,
        32,
    ]


def test_given_ranks_are_neither_rounded_nor_weighed() -> None:
    (choice,) = explicit_ranks(layers([(64, 96)]), {"up_proj": 63}).values()
    assert choice.rank == 63


def test_a_layer_without_a_pattern_stays_dense_with_the_reason() -> None:
    found = explicit_ranks(layers([(64, 96)] * 2), {"*.1.*": 4})
    first, second = found.values()
    assert (first.rank, first.reason) == (None, "decompose.ranks names no rank for it")
    assert (second.rank, second.reason) == (4, None)


@pytest.mark.parametrize("rank", [0, 65, 1000])
def test_a_rank_that_no_layer_can_have_names_pattern_and_layer(rank: int) -> None:
    message = rf"ranks\.up_\*: rank {rank} is outside 1 … 64 for model\.layers\.0\.mlp\.up_proj"
    with pytest.raises(RankError, match=message):
        explicit_ranks(layers([(64, 96)]), {"up_*": rank})


def test_a_pattern_that_matches_nothing_is_told_with_an_example() -> None:
    with pytest.raises(
        RankError, match=r"ranks\.k_proj matches no layer.*model\.layers\.0\.mlp\.up"
    ):
        explicit_ranks(layers([(64, 96)]), {"up_proj": 8, "k_proj": 8})
    with pytest.raises(RankError, match="no layers to factorise"):
        explicit_ranks([], {"up_proj": 8})
