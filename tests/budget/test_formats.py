"""Whose bytes a budget may count: refusals come before anything is tried."""

from __future__ import annotations

from typing import Any

import pytest

from asvd_q.budget.format import format_count
from asvd_q.errors import RecipeError
from asvd_q.exporting import make_exporter
from asvd_q.recipe import ExportSection
from tests.budget.given import recipe

FORMAT = "compressed-tensors"
GIVEN = {"bits_per_weight": 4, "format": FORMAT}


def count_name(**sections: Any) -> str:
    """Of the count, with the export that the recipe names."""
    options: dict[str, Any] = {"dtype": "float16"}
    exporter = make_exporter(FORMAT, options, where="export.0", file="the recipe")
    export = ExportSection.model_validate({"format": FORMAT, **options})
    given = recipe(**{"budget": GIVEN} | sections)
    return format_count(given, "float32", ((export, exporter),)).name


def test_compressed_tensors_may_be_counted() -> None:
    assert count_name() == FORMAT
    assert count_name(quantize={"method": "gptq", "act_order": True, "static_groups": True})


@pytest.mark.parametrize(
    ("quantize", "instead"),
    [
        ({"method": "rtn", "symmetric": False}, "use symmetric: true"),
        ({"method": "gptq", "act_order": True}, "use static_groups: true"),
        ({"method": "nf4"}, "quantize it with rtn or gptq"),
    ],
)
def test_codes_that_the_format_never_holds(quantize: dict[str, Any], instead: str) -> None:
    message = rf"budget\.format: {FORMAT} cannot hold what quantize makes: .*{instead}"
    with pytest.raises(RecipeError, match=message):
        count_name(quantize=quantize)


def test_one_setting_that_it_holds_is_enough() -> None:
    """Of one matrix, of one group size, or of the layers that an override is for."""
    factors = {"A": {"symmetric": True}}
    assert count_name(quantize={"method": "rtn", "symmetric": False, "factors": factors})
    whole = {"method": "gptq", "act_order": True}
    assert count_name(quantize=whole, budget=GIVEN | {"group_sizes": [-1, 32]})
    overrides = [{"match": "*", "symmetric": True}]
    assert count_name(quantize={"method": "rtn", "symmetric": False, "overrides": overrides})


def test_a_format_of_one_width_names_those_that_mix_them() -> None:
    with pytest.raises(RecipeError, match="use store, onnx or compressed-tensors"):
        format_count(recipe(budget=GIVEN | {"format": "gptq"}), "float32", ())
