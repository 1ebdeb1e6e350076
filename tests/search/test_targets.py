"""Whether a plan stays within a recipe's budget."""

from __future__ import annotations

from typing import Any

import pytest

from asvd_q.plan import LayerPlan, Plan
from asvd_q.recipe import SearchSection
from asvd_q.search.allocation import Budget
from asvd_q.search.targets import is_met, make_target


def layer(name: str, rank: int | None, size: int) -> LayerPlan:
    return LayerPlan(
        name=name,
        kind=name,
        block=0,
        shape=(30, 20),
        form="dense" if rank is None else "factors",
        rank=rank,
        quantization={"weight": None} if rank is None else {"B": None, "A": None},
        predicted_bytes=size,
    )


PLAN = Plan(
    float_type="float32",
    layers=(layer("a", 6, 700), layer("b", 3, 200), layer("c", None, 50)),
    other_bytes=74,
)
"""1050 of 1800 parameters, 1024 bytes."""


@pytest.mark.parametrize(
    ("target", "met"),
    [
        ({"kept_ratio": 1050 / 1800}, True),
        ({"kept_ratio": 1049 / 1800}, False),
        ({"size": "1 KiB"}, True),
        ({"size": "1023 B"}, False),
        ({"max_loss_increase": 1e-9}, True),
        ({"perplexity": "+1 %"}, True),
    ],
)
def test_is_met(target: dict[str, Any], met: bool) -> None:
    assert is_met(SearchSection.model_validate(target), PLAN) == met


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.583, 7 / 12, 0.7, 0.9])
def test_it_is_met_where_the_allocation_keeps_its_limit(ratio: float) -> None:
    """The two count from different ends, and must agree on the last parameter."""
    search = SearchSection.model_validate({"kept_ratio": ratio})
    dense = Plan(
        float_type="float32",
        layers=tuple(layer(name, None, 2400) for name in "abc"),
        other_bytes=74,
    )
    target = make_target(search, dense, {"a", "b"})
    assert isinstance(target, Budget)
    searched = sum(PLAN.layer(name).parameters for name in "ab")
    assert is_met(search, PLAN) == (searched <= target.limit)
