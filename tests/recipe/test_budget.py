"""The `budget` section: its targets, and what there may be to choose from."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from asvd_q.recipe import BudgetSection, Recipe
from asvd_q.recipe.budget import BUDGET_TARGETS
from asvd_q.recipe.text import parse_yaml


def section(**fields: Any) -> BudgetSection:
    return BudgetSection.model_validate({"bits_per_weight": 4} | fields)


@pytest.mark.parametrize(
    ("size", "expected"),
    [("3.2 GiB", int(3.2 * 2**30)), ("900MB", 900 * 10**6), ("12 kib", 12288), ("7 B", 7)],
)
def test_size(size: str, expected: int) -> None:
    found = BudgetSection(size=size)
    assert found.size_bytes == expected
    assert section().size_bytes is None


@pytest.mark.parametrize("size", ["", "3.2", "GiB", "-1 GiB", "3 TiB", "3,2 GiB", 7])
def test_size_that_is_none(size: Any) -> None:
    with pytest.raises(ValidationError):
        BudgetSection(size=size)


@pytest.mark.parametrize(
    ("value", "rise"),
    [("+2 %", 0.02), ("+2%", 0.02), (" + 0.5 % ", 0.005), (12.5, None), (7, None)],
)
def test_perplexity(value: str | float, rise: float | None) -> None:
    found = BudgetSection(perplexity=value)
    assert found.perplexity_rise == (None if rise is None else pytest.approx(rise))
    assert found.needs_dense_loss == (rise is None)
    assert not section().needs_dense_loss


@pytest.mark.parametrize("given", ["+2%", '"+2 %"', "+2 %"])
def test_perplexity_as_yaml_reads_it(given: str) -> None:
    fields = parse_yaml(f"{{perplexity: {given}}}", "recipe")
    assert BudgetSection.model_validate(fields).perplexity_rise == pytest.approx(0.02)


@pytest.mark.parametrize(
    "value", ["", "2 %", "+2", "+0 %", "-2 %", "+2,5 %", 0, -1.0, True, float("inf"), [2]]
)
def test_perplexity_that_is_none(value: Any) -> None:
    with pytest.raises(ValidationError, match="allowed is a number above 0, or a rise"):
        BudgetSection(perplexity=value)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, "none"),
        ({"size": "1 GB", "bits_per_weight": 3}, "size and bits_per_weight"),
        ({"perplexity": 9, "max_loss_increase": 0.1}, "max_loss_increase and perplexity"),
        ({"decode_speed": 50.0, "size": "1 GiB"}, "size and decode_speed"),
        ({"decode_speed": 50.0, "perplexity": "+2 %"}, "perplexity and decode_speed"),
    ],
)
def test_exactly_one_target(fields: dict[str, Any], found: str) -> None:
    message = f"exactly one target of {', '.join(BUDGET_TARGETS)}, and has {found}"
    with pytest.raises(ValidationError, match=message):
        BudgetSection.model_validate(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"bits_per_weight": 0},
        {"bits_per_weight": 33},
        {"bits": []},
        {"bits": [1]},
        {"bits": [4, 9]},
        {"bits": [4, 4]},
        {"group_sizes": []},
        {"group_sizes": [8]},
        {"group_sizes": [512]},
        {"group_sizes": [32, 64, 32]},
        {"ranks": 0},
        {"correction_ranks": [0]},
        {"correction_ranks": [8, 8]},
        {"sample": 0},
        {"format": ""},
        {"colour": "red"},
    ],
)
def test_what_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        section(**fields)


@pytest.mark.parametrize("value", [0, -1.0, "fast", float("inf"), float("nan"), True])
def test_a_speed_is_a_number_above_0(value: Any) -> None:
    with pytest.raises(ValidationError, match="decode_speed"):
        BudgetSection.model_validate({"decode_speed": value})


@pytest.mark.parametrize("value", [0.5, 40])
def test_a_speed(value: float) -> None:
    assert BudgetSection.model_validate({"decode_speed": value}).decode_speed == value


def test_one_scale_per_channel_is_a_group_size() -> None:
    assert section(group_sizes=[-1, 16, 256]).group_sizes == (-1, 16, 256)


def test_a_recipe_with_a_budget_needs_no_other_target() -> None:
    fields = {
        "model": {"path": "somewhere"},
        "calibration": {"corpus": "python-docs"},
        "decompose": {},
        "quantize": {},
        "correct": {},
        "budget": {"size": "1 GB"},
    }
    found = Recipe.model_validate(fields)
    assert found.searches
    assert found.resolved_yaml() == Recipe.model_validate(found.model_dump()).resolved_yaml()
