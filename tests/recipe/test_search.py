"""The `search` section: its targets and what it asks of the rest of a recipe."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from asvd_q.recipe import Recipe, SearchSection
from asvd_q.recipe.text import parse_yaml


def _recipe(**sections: Any) -> Recipe:
    fields: dict[str, Any] = {
        "model": {"path": "somewhere"},
        "calibration": {"corpus": "python-docs"},
        "decompose": {},
        "search": {"kept_ratio": 0.8},
    }
    return Recipe.model_validate(fields | sections)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3.2 GiB", int(3.2 * 2**30)), ("900MB", 900 * 10**6), ("12 kib", 12288), ("7 B", 7)],
)
def test_size(text: str, expected: int) -> None:
    assert SearchSection(size=text).size_bytes == expected


@pytest.mark.parametrize("text", ["", "3.2", "GiB", "-1 GiB", "3 TiB", "3,2 GiB"])
def test_size_that_is_none(text: str) -> None:
    with pytest.raises(ValidationError):
        SearchSection(size=text)


@pytest.mark.parametrize(
    ("value", "rise"),
    [("+2 %", 0.02), ("+2%", 0.02), (" + 0.5 % ", 0.005), (12.5, None), (7, None)],
)
def test_perplexity(value: str | float, rise: float | None) -> None:
    section = SearchSection(perplexity=value)
    assert section.perplexity == value
    assert section.perplexity_rise == (None if rise is None else pytest.approx(rise))


@pytest.mark.parametrize(
    "value", ["", "2 %", "+2", "+0 %", "-2 %", "+2,5 %", 0, -1.0, True, float("inf"), [2]]
)
def test_perplexity_that_is_none(value: Any) -> None:
    message = r"allowed is a number above 0, or a rise .* such as \"\+2 %\""
    with pytest.raises(ValidationError, match=message):
        SearchSection(perplexity=value)


@pytest.mark.parametrize("given", ["+2%", '"+2 %"', "+2 %"])
def test_perplexity_as_yaml_reads_it(given: str) -> None:
    section = parse_yaml(f"{{perplexity: {given}}}", "recipe")
    assert SearchSection.model_validate(section).perplexity_rise == pytest.approx(0.02)


@pytest.mark.parametrize(
    "fields", [{}, {"kept_ratio": 0.5, "size": "1 GiB"}, {"perplexity": 9, "size": "1 GiB"}]
)
def test_exactly_one_target(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one target"):
        SearchSection.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kept_ratio": 0.5}, "set `method: strs`"),
        ({"size": "1 GiB", "method": "optimal"}, "set `method: strs`"),
        ({"max_loss_increase": 0.1, "method": "strs"}, "give `kept_ratio` or `size`"),
        ({"perplexity": "+2 %", "method": "strs"}, "give `kept_ratio` or `size`"),
    ],
)
def test_what_stable_rank_needs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearchSection.model_validate({"sensitivity": "stable_rank", **fields})


def test_stable_rank_predicts_no_loss() -> None:
    section = SearchSection(kept_ratio=0.5, sensitivity="stable_rank", method="strs")
    assert not section.predicts_loss
    assert SearchSection(kept_ratio=0.5).predicts_loss


def test_verify_is_a_switch() -> None:
    assert SearchSection(kept_ratio=0.5).verify
    with pytest.raises(ValidationError):
        SearchSection.model_validate({"kept_ratio": 0.5, "verify": "no"})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"decompose": None}, "search needs a `decompose` section"),
        ({"decompose": {"kept_ratio": 0.5}}, "leave kept_ratio and ranks out"),
        ({"decompose": {"ranks": {"*": 32}}}, "leave kept_ratio and ranks out"),
        ({"search": None}, "or the recipe a `search` or `budget` section"),
        (
            {"calibration": None, "decompose": {"scaling": "none"}},
            "search needs a `calibration` section",
        ),
    ],
)
def test_what_a_search_needs(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _recipe(**sections)


def test_a_search_recipe() -> None:
    assert _recipe().search == SearchSection(kept_ratio=0.8)
