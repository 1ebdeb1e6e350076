"""The plan: what it refuses, what it counts, and that it survives JSON."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from asvd_q.plan import LayerPlan, Plan, QuantSpec, factor_parameters

RTN = QuantSpec(bits=4, group_size=32)


def layer(**changes: Any) -> LayerPlan:
    fields: dict[str, Any] = {
        "name": "model.layers.0.mlp.up_proj",
        "kind": "up_proj",
        "block": 0,
        "shape": (96, 64),
        "quantization": {"weight": None},
    }
    return LayerPlan.model_validate(fields | changes)


def factors(rank: int, **changes: Any) -> LayerPlan:
    return layer(
        **({"form": "factors", "rank": rank, "quantization": {"A": None, "B": None}} | changes)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 3}, "factors and corrections have a rank"),
        (
            {"form": "factors", "quantization": {"A": None, "B": None}},
            "factors and corrections have a rank",
        ),
        ({"form": "factors", "rank": 3}, "form factors has the slots"),
        ({"quantization": {"A": None, "B": None}}, "form dense has the slots"),
        ({"quantization": {}}, "form dense has the slots"),
        ({"form": "factors", "rank": 3, "quantization": {"A": None}}, "form factors has the slots"),
        ({"form": "sparse"}, "dense"),
        ({"ranks": 3}, "Extra inputs"),
    ],
    ids=[
        "dense-with-rank",
        "factors-without-rank",
        "factors-with-weight-slot",
        "dense-with-factor-slots",
        "no-slots",
        "one-factor-missing",
        "unknown-form",
        "unknown-field",
    ],
)
def test_inconsistent_layers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        layer(**changes)


@pytest.mark.parametrize("rank", [-1, 0, 65])
def test_rank_outside_the_shape_is_refused_by_name(rank: int) -> None:
    with pytest.raises(ValidationError, match=rf"up_proj: rank {rank} is outside 1 … 64"):
        factors(rank)


@pytest.mark.parametrize("rank", [1, 64])
def test_bounds_of_the_rank_are_allowed(rank: int) -> None:
    assert factors(rank).slot_shapes() == {"B": (rank, 64), "A": (96, rank)}


@pytest.mark.parametrize("size", [0, 1, 15, 257, -2])
def test_group_sizes_outside_the_range_are_refused(size: int) -> None:
    with pytest.raises(ValidationError):
        QuantSpec(group_size=size)


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_outside_the_range_are_refused(bits: int) -> None:
    with pytest.raises(ValidationError):
        QuantSpec(bits=bits)


@pytest.mark.parametrize(
    ("group_size", "columns", "width", "groups"),
    [(-1, 100, 100, 1), (256, 100, 100, 1), (32, 100, 32, 4), (16, 16, 16, 1), (100, 200, 100, 2)],
)
def test_groups(group_size: int, columns: int, width: int, groups: int) -> None:
    spec = QuantSpec(group_size=group_size)
    assert (spec.group_width(columns), spec.groups(columns)) == (width, groups)


def test_a_layer_is_changed_when_anything_but_a_copy_is_stored() -> None:
    assert not layer().changed
    assert layer(quantization={"weight": RTN}).changed
    assert factors(4).changed


def test_slots_come_in_the_order_they_are_applied() -> None:
    assert list(factors(4).slot_shapes()) == ["B", "A"]
    assert list(layer().slot_shapes()) == ["weight"]


def plan() -> Plan:
    return Plan(
        float_type="bfloat16",
        layers=(
            factors(8, name="a", predicted_bytes=100),
            layer(name="b", shape=(10, 20), quantization={"weight": RTN}, predicted_bytes=7),
            factors(16, name="c", reason="because", quantization={"A": RTN, "B": None}),
        ),
        other_bytes=1000,
    )


def test_ranks_bytes_and_kept_ratio_of_a_plan() -> None:
    assert plan().ranks == {"a": 8, "c": 16}
    assert plan().predicted_bytes == 1107
    before = 2 * 96 * 64 + 200
    after = 8 * (96 + 64) + 200 + 16 * (96 + 64)
    assert plan().kept_ratio == pytest.approx(after / before, rel=1e-15)
    assert [found.name for found in plan()] == ["a", "b", "c"]
    assert plan().layer("b").shape == (10, 20)
    with pytest.raises(KeyError):
        plan().layer("d")


def test_layers_are_replaced_by_name() -> None:
    dense = layer(name="c", predicted_bytes=5)
    found = plan().with_layers({"c": dense, "d": dense})
    assert found.layers == (*plan().layers[:2], dense)
    assert found.ranks == {"a": 8}
    assert found.predicted_bytes == 1112
    assert plan().with_layers({}) == plan()


def test_parameters_of_factors_agree_with_the_slots() -> None:
    assert factors(5).parameters == factor_parameters((96, 64), 5) == 5 * (96 + 64)


def test_a_plan_survives_json() -> None:
    text = plan().model_dump_json()
    again = Plan.model_validate_json(text)
    assert again == plan()
    assert again.model_dump_json() == text
