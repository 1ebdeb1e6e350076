"""The forms that one layer may take. Pure: nothing is read and nothing is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from asvd_q.budget.counting import Count
from asvd_q.budget.settings import settings_on_offer
from asvd_q.models.refs import WeightRef
from asvd_q.plan import LayerPlan, QuantSpec, Slot, factor_parameters
from asvd_q.recipe import Recipe
from asvd_q.search.planning import plan_layer

__all__ = ["Offer", "layer_offers", "ranks_to_try", "uniform_offers"]


_COARSE = 4
"""Bits of the widest codes that a correction is offered beside."""

_FINE = (4, 8)
"""Bits of the codes that a correction itself may have."""


@dataclass(frozen=True)
class Offer:
    """One form of a layer, and the bytes that it takes in the format that is counted for."""

    layer: LayerPlan
    bytes: int


def layer_offers(weight: WeightRef, recipe: Recipe, count: Count) -> list[Offer]:
    """All forms of a layer that the recipe allows and the format can hold.

    Left out is what takes no fewer bytes than the layer in floating point, or than the same form
    with codes that are nowhere narrower.

    Args:
        recipe: with `budget` and `quantize` sections.

    Returns:
        The layer in floating point first. A layer that `quantize` leaves out has no other form.
    """
    assert recipe.budget is not None
    section, correct = recipe.decompose, recipe.correct
    floats = plan_layer(weight, {"weight": None}, None, count.float_type)
    part = weight.vocabulary
    found = list(_dense(weight, settings_on_offer(recipe, weight.name, "weight", part), count))
    if part is not None:  # codes are all that is tried of an embedding or a head
        section = correct = None
    if section is not None and section.selects(weight.name):
        for rank in ranks_to_try(weight.shape, section.rank_multiple, recipe.budget.ranks):
            found += _pairs(weight, rank, recipe, count)
    if correct is not None and correct.selects(weight.name):
        for rank in recipe.budget.correction_ranks:
            if factor_parameters(weight.shape, rank) < weight.shape[0] * weight.shape[1] / 2:
                found += _corrections(weight, rank, recipe, count)
    whole = count.of_layer(floats)
    if whole is None:  # a format for codes alone
        return _thinned(found)
    return [Offer(floats, whole), *(one for one in _thinned(found) if one.bytes < whole)]


def ranks_to_try(shape: tuple[int, int], multiple: int, most: int) -> list[int]:
    """Ranks, ascending, that take fewer parameters than the layer, evenly spread.

    Args:
        shape: (out, in).
        multiple: that every rank is one of.
        most: how many.
    """
    whole = shape[0] * shape[1]
    every = [
        rank
        for rank in range(multiple, min(shape), multiple)
        if factor_parameters(shape, rank) < whole
    ]
    if len(every) <= most:
        return every
    return sorted({every[round((number + 1) * len(every) / most) - 1] for number in range(most)})


def uniform_offers(weight: WeightRef, recipe: Recipe, count: Count) -> list[Offer]:
    """What plain quantization of the whole model would make of a layer: a yardstick.

    RTN and GPTQ of every width, in the first of the group sizes, and NF4 in its own blocks; what
    the format cannot hold is left out. Embedding and head it would leave alone.
    """
    if weight.vocabulary is not None:
        return []
    assert recipe.budget is not None
    group = recipe.budget.group_sizes[0]
    specs = [
        QuantSpec(method=method, bits=bits, group_size=group)
        for method in ("rtn", "gptq")
        for bits in recipe.budget.bits
    ]
    return list(_dense(weight, [*specs, QuantSpec(method="nf4", bits=4, group_size=64)], count))


def _dense(weight: WeightRef, specs: Sequence[QuantSpec], count: Count) -> Iterator[Offer]:
    for spec in specs:
        yield from _offer(weight, {"weight": spec}, None, count)


def _pairs(weight: WeightRef, rank: int, recipe: Recipe, count: Count) -> Iterator[Offer]:
    """Factors of one rank; groups of one size in both."""
    rights = settings_on_offer(recipe, weight.name, "B")
    for right in rights:
        for left in settings_on_offer(recipe, weight.name, "A"):
            if left.method != right.method or left.group_size == right.group_size:
                yield from _offer(weight, {"B": right, "A": left}, rank, count)


def _corrections(weight: WeightRef, rank: int, recipe: Recipe, count: Count) -> Iterator[Offer]:
    """Coarse codes, and A and B of one width beside them: floats, or codes of 4 bits and more."""
    pairs = [
        (right, left)
        for right in [None, *settings_on_offer(recipe, weight.name, "B")]
        for left in [None, *settings_on_offer(recipe, weight.name, "A")]
        if (right is None) == (left is None)
        if right is None or left is None or (right.bits == left.bits and right.bits in _FINE)
    ]
    for spec in settings_on_offer(recipe, weight.name, "weight"):
        if spec.bits > _COARSE:
            continue
        for right, left in pairs:
            if all(one is None or one.group_size == spec.group_size for one in (right, left)):
                yield from _offer(weight, {"weight": spec, "B": right, "A": left}, rank, count)


def _offer(
    weight: WeightRef,
    quantization: Mapping[Slot, QuantSpec | None],
    rank: int | None,
    count: Count,
) -> Iterator[Offer]:
    layer = plan_layer(weight, quantization, rank, count.float_type)
    size = count.of_layer(layer)
    if size is not None:
        yield Offer(layer, size)


def _thinned(offers: Sequence[Offer]) -> list[Offer]:
    """Without those that another one, of the same form and wider codes, equals in bytes."""
    best: dict[tuple[object, ...], Offer] = {}
    for offer in offers:
        layer = offer.layer
        key = (layer.form, layer.rank, offer.bytes)
        held = best.get(key)
        if held is None or _width(layer) > _width(held.layer):
            best[key] = offer
    return list(best.values())


def _width(layer: LayerPlan) -> tuple[int, int]:
    """Bits of all codes, and then how fine their groups are: more of either loses less."""
    specs = [(slot, spec) for slot, spec in layer.quantization.items() if spec is not None]
    shapes = layer.slot_shapes()
    bits = sum(shapes[slot][0] * shapes[slot][1] * spec.bits for slot, spec in specs)
    scales = sum(shapes[slot][0] * spec.groups(shapes[slot][1]) for slot, spec in specs)
    return bits, scales
