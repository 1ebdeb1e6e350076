"""What a layer is offered, against every form that there is."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import pytest

from asvd_q.budget.counting import Count
from asvd_q.budget.offers import Offer, layer_offers, ranks_to_try, uniform_offers
from asvd_q.plan import LayerPlan, QuantSpec, Slot, store_bytes
from asvd_q.recipe import Recipe
from asvd_q_exporters.gptq import GptqExporter
from asvd_q_exporters.onnx import OnnxExporter
from tests.budget.given import dense, factors, layer_ref, recipe

STORE = Count("float32")
ONNX = Count("float32", OnnxExporter())
GRID: dict[str, Any] = {"bits_per_weight": 4, "bits": [2, 3, 4, 5, 6, 8], "group_sizes": [16, 32]}


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (257, 31), (31, 257), (64, 64), (8, 8)])
@pytest.mark.parametrize("multiple", [1, 5, 8, 32])
@pytest.mark.parametrize("most", [1, 2, 3, 7, 1000])
def test_ranks(shape: tuple[int, int], multiple: int, most: int) -> None:
    rows, columns = shape
    saving = [
        rank
        for rank in range(1, min(shape) + 1)
        if rank % multiple == 0 and rank * (rows + columns) < rows * columns
    ]
    found = ranks_to_try(shape, multiple, most)
    assert found == sorted(set(found))
    assert set(found) <= set(saving)
    assert len(found) == min(most, len(saving))
    assert found[-1:] == saving[-1:]
    if len(found) > 1:  # evenly: no two neighbours are closer together than one place less
        places = [-1, *(saving.index(rank) for rank in found)]
        gaps = [after - before for before, after in pairwise(places)]
        assert max(gaps) - min(gaps) <= 1


def every_form(given: Recipe, weight: Any) -> Iterator[LayerPlan]:
    """All that the recipe's lists span."""
    assert given.budget is not None
    assert given.quantize is not None
    assert given.decompose is not None
    pairs = list(product(given.budget.bits, given.budget.group_sizes))

    def spec(slot: Slot, bits: int, group: int) -> QuantSpec:
        assert given.quantize is not None
        base = given.quantize.spec_for(weight.name, slot)
        assert base is not None
        return base.model_copy(update={"bits": bits, "group_size": group})

    for bits, group in pairs:
        yield dense(weight, spec("weight", bits, group))
    for rank in ranks_to_try(weight.shape, given.decompose.rank_multiple, given.budget.ranks):
        for (right, group), left in product(pairs, given.budget.bits):
            yield factors(weight, rank, spec("B", right, group), spec("A", left, group))


def codes(layer: LayerPlan) -> int:
    """Bits of all codes."""
    shapes = layer.slot_shapes()
    return sum(
        shapes[slot][0] * shapes[slot][1] * spec.bits
        for slot, spec in layer.quantization.items()
        if spec is not None
    )


def no_narrower(one: LayerPlan, other: LayerPlan) -> bool:
    pairs = [(one.quantization[slot], spec) for slot, spec in other.quantization.items()]
    return all(
        a is not None and b is not None and a.bits >= b.bits and a.group_size <= b.group_size
        for a, b in pairs
    )


@pytest.mark.parametrize("count", [STORE, ONNX], ids=["store", "onnx"])
@pytest.mark.parametrize("shape", [(64, 96), (64, 64), (40, 200)])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_nothing_is_missing_and_nothing_is_dominated(
    count: Count, shape: tuple[int, int], method: str
) -> None:
    weight = layer_ref(shape)
    given = recipe(budget=GRID | {"ranks": 3}, quantize={"method": method, "symmetric": False})
    floats, *offers = layer_offers(weight, given, count)
    assert floats.layer == dense(weight, None)
    assert floats.bytes == count.of_layer(floats.layer)
    best = {(one.layer.form, one.layer.rank, one.bytes): one.layer for one in offers}
    assert len(best) == len(offers)
    spanned = list(every_form(given, weight))
    assert all(one.layer in spanned for one in offers)
    for layer in spanned:
        size = count.of_layer(layer)
        assert size is not None
        if size < floats.bytes:
            assert codes(best[layer.form, layer.rank, size]) >= codes(layer)
    for one in offers:
        assert one.bytes < floats.bytes
        for other in offers:
            if other is not one and (one.layer.form, one.layer.rank) == (
                other.layer.form,
                other.layer.rank,
            ):
                assert not (other.bytes == one.bytes and no_narrower(other.layer, one.layer))


@pytest.mark.parametrize("shape", [(64, 96), (48, 80)])
def test_bytes_are_those_of_the_format(shape: tuple[int, int]) -> None:
    given = recipe(budget=GRID)
    for one in layer_offers(layer_ref(shape), given, STORE):
        assert one.bytes == sum(
            store_bytes(part, one.layer.quantization[slot], "float32")
            for slot, part in one.layer.slot_shapes().items()
        )
        assert one.layer.predicted_bytes == one.bytes
    for one in layer_offers(layer_ref(shape), given, ONNX):
        assert one.bytes == OnnxExporter().stored_bytes(one.layer)


def widths(offers: list[Offer]) -> set[int]:
    return {
        spec.bits for one in offers for spec in one.layer.quantization.values() if spec is not None
    }


def test_what_takes_the_bytes_of_wider_codes_is_not_offered() -> None:
    given = recipe(budget=GRID)
    assert widths(layer_offers(layer_ref(), given, STORE)) == {2, 3, 4, 5, 6, 8}
    assert widths(layer_offers(layer_ref(), given, ONNX)) == {2, 4, 8}


def test_what_a_format_cannot_hold_is_not_offered() -> None:
    given = recipe(budget=GRID | {"group_sizes": [16, 24, 32]})
    sizes = {
        spec.group_size
        for one in layer_offers(layer_ref((96, 256)), given, ONNX)
        for spec in one.layer.quantization.values()
        if spec is not None
    }
    assert sizes == {16, 32}


def test_widths_that_a_format_does_not_have_are_not_offered() -> None:
    count = Count("float16", GptqExporter(GptqExporter.options_model()))
    given = recipe(budget=GRID | {"group_sizes": [32]}, quantize={"method": "gptq"})
    offers = layer_offers(layer_ref((64, 96)), given, count)
    assert widths(offers) == {2, 3, 4, 8}
    assert all(count.of_layer(one.layer) == one.bytes for one in offers)


@pytest.mark.parametrize(
    "quantize",
    [
        {"exclude": ["proj"]},
        {"include": ["other"]},
        {"overrides": [{"match": "proj", "skip": True}]},
    ],
)
def test_a_layer_left_out_of_quantization_stays(quantize: dict[str, Any]) -> None:
    weight = layer_ref()
    (only,) = layer_offers(weight, recipe(quantize=quantize), STORE)
    assert only == Offer(dense(weight, None), 4 * 64 * 96)


def test_one_factor_left_out_of_quantization_leaves_the_dense_forms() -> None:
    given = recipe(quantize={"overrides": [{"match": "proj", "slot": "A", "skip": True}]})
    offers = layer_offers(layer_ref(), given, STORE)
    assert {one.layer.form for one in offers} == {"dense"}
    assert len(offers) == 3


def test_dense_layers_left_out_of_quantization_leave_the_factors() -> None:
    offers = layer_offers(layer_ref(), recipe(quantize={"dense": False}), STORE)
    assert [one.layer.form for one in offers][:1] == ["dense"]
    assert {one.layer.form for one in offers[1:]} == {"factors"}


@pytest.mark.parametrize(
    "decompose", [None, {"rank_multiple": 8, "exclude": ["proj"]}, {"rank_multiple": 64}]
)
def test_no_factors_without_ranks_to_choose_from(decompose: dict[str, Any] | None) -> None:
    offers = layer_offers(layer_ref(), recipe(decompose=decompose), STORE)
    assert {one.layer.form for one in offers} == {"dense"}


def test_nf4_keeps_its_width_and_its_blocks() -> None:
    given = recipe(quantize={"method": "nf4", "group_size": 128}, budget=GRID | {"ranks": 2})
    floats, *offers = layer_offers(layer_ref(), given, STORE)
    assert floats.layer.quantization == {"weight": None}
    specs = {spec for one in offers for spec in map(str, one.layer.quantization.values())}
    assert specs == {str(QuantSpec(method="nf4", group_size=128))}
    assert [one.layer.form for one in offers] == ["dense", "factors", "factors"]


def test_nf4_in_one_factor_goes_with_every_group_of_the_other() -> None:
    quantize = {"method": "rtn", "factors": {"A": {"method": "nf4"}}}
    offers = layer_offers(layer_ref(), recipe(budget=GRID, quantize=quantize), STORE)
    pairs = {
        (right.bits, right.group_size)
        for one in offers
        if one.layer.form == "factors" and (right := one.layer.quantization["B"]) is not None
    }
    assert pairs == set(product(GRID["bits"], GRID["group_sizes"]))


def test_settings_that_are_not_chosen_are_the_recipes() -> None:
    quantize = {
        "method": "gptq",
        "damping": 0.05,
        "overrides": [{"match": "proj", "slot": "B", "symmetric": False}],
    }
    for one in layer_offers(layer_ref(), recipe(quantize=quantize), STORE)[1:]:
        for slot, spec in one.layer.quantization.items():
            assert spec is not None
            assert (spec.method, spec.damping, spec.symmetric) == ("gptq", 0.05, slot != "B")


def test_the_yardstick() -> None:
    offers = uniform_offers(layer_ref(), recipe(decompose=None, budget=GRID), STORE)
    found = [
        (spec.method, spec.bits) for one in offers if (spec := one.layer.quantization["weight"])
    ]
    assert found == [*product(("rtn", "gptq"), GRID["bits"]), ("nf4", 4)]
    assert all(one.bytes == STORE.of_layer(one.layer) for one in offers)
