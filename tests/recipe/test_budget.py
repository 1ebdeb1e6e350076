"""The `budget` section: its targets."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from asvd_q.recipe import BudgetSection


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"decode_speed": 50.0, "size": "1 GiB"},
        {"decode_speed": 50.0, "perplexity": "+2 %"},
        {"bits_per_weight": 3.0, "size": "1 GiB"},
    ],
)
def test_exactly_one_target(fields: dict[str, Any]) -> None:
    found = " and ".join(sorted(fields, key=list(BudgetSection.model_fields).index)) or "none"
    message = rf"exactly one target of size, .*, decode_speed, and has {found}"
    with pytest.raises(ValidationError, match=message):
        BudgetSection.model_validate(fields)


@pytest.mark.parametrize("value", [0, -1.0, "fast", float("inf"), float("nan"), True])
def test_a_speed_is_a_number_above_0(value: Any) -> None:
    with pytest.raises(ValidationError, match="decode_speed"):
        BudgetSection.model_validate({"decode_speed": value})


@pytest.mark.parametrize("value", [0.5, 40])
def test_a_speed(value: float) -> None:
    assert BudgetSection.model_validate({"decode_speed": value}).decode_speed == value
