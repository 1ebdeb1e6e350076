"""From a recipe and a model's structure to a plan. Reads no weights and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from asvd_q.errors import RecipeError
from asvd_q.models.refs import WeightRef
from asvd_q.models.skeleton import Skeleton
from asvd_q.models.source import SourceModel
from asvd_q.plan import (
    FLOAT_BYTES,
    FloatType,
    Form,
    LayerPlan,
    Plan,
    QuantSpec,
    Slot,
    store_bytes,
)
from asvd_q.recipe import Recipe, matches
from asvd_q.search.uniform import RankChoice, explicit_ranks, uniform_ranks

__all__ = ["layer_bytes", "make_plan", "plan_layer"]


def make_plan(
    recipe: Recipe, source: SourceModel, skeleton: Skeleton, float_type: FloatType
) -> Plan:
    """Decide form, rank and quantization of every layer.

    Raises:
        RankError: explicit ranks that do not fit the model.
        RecipeError: a pattern that matches no layer, or a head that cannot be decomposed.
    """
    _check_patterns(recipe, [weight.name for weight in skeleton.weights])
    weights = [weight for weight in skeleton.weights if _covered(weight, recipe, skeleton)]
    choices = _choose_ranks(recipe, weights)
    layers = tuple(_layer(weight, choices, recipe, float_type) for weight in weights)
    planned = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    total = sum(info.numel for info in source.tensors.values())
    return Plan(
        float_type=float_type,
        layers=layers,
        other_bytes=(total - planned) * FLOAT_BYTES[float_type],
    )


def _covered(weight: WeightRef, recipe: Recipe, skeleton: Skeleton) -> bool:
    """Layers inside the blocks always are; the head only when the recipe asks for it.

    A head tied to the embedding cannot be: changing it would store the matrix a second time.
    """
    if weight.block is not None:
        return True
    wanted = recipe.decompose is not None and recipe.decompose.lm_head
    if wanted and skeleton.head_is_tied:
        raise RecipeError(
            f"decompose.lm_head: {weight.name} is the embedding's own matrix in this model, and "
            "factors of it would be stored beside it: leave lm_head out"
        )
    return wanted


def _check_patterns(recipe: Recipe, names: list[str]) -> None:
    """Raises RecipeError for a pattern that matches no layer: most likely a misspelt name."""
    patterns: dict[str, tuple[str, ...]] = {}
    if recipe.decompose is not None:
        patterns["decompose.include"] = recipe.decompose.include
        patterns["decompose.exclude"] = recipe.decompose.exclude
    if recipe.quantize is not None:
        patterns["quantize.include"] = recipe.quantize.include
        patterns["quantize.exclude"] = recipe.quantize.exclude
        patterns["quantize.overrides"] = tuple(item.match for item in recipe.quantize.overrides)
    kinds = sorted({name.rsplit(".", 1)[-1] for name in names})
    for key, given in patterns.items():
        for pattern in given:
            if not any(matches(name, [pattern]) for name in names):
                close = get_close_matches(pattern.rsplit(".", 1)[-1], kinds, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise RecipeError(
                    f"{key}: {pattern!r} matches no layer of the model: {hint}"
                    f"Its layers are called {', '.join(kinds)}"
                )


def _choose_ranks(recipe: Recipe, weights: list[WeightRef]) -> dict[str, RankChoice]:
    section = recipe.decompose
    if section is None:
        return {weight.name: RankChoice(None) for weight in weights}
    included = [weight for weight in weights if section.selects(weight.name)]
    left_out = "left out by decompose.include and decompose.exclude"
    choices = {weight.name: RankChoice(None, left_out) for weight in weights}
    if section.ranks is not None:
        return choices | explicit_ranks(included, section.ranks)
    assert section.kept_ratio is not None
    return choices | uniform_ranks(included, section.kept_ratio, section.rank_multiple)


def _layer(
    weight: WeightRef, choices: dict[str, RankChoice], recipe: Recipe, float_type: FloatType
) -> LayerPlan:
    choice = choices[weight.name]
    dense = _build(weight, RankChoice(None, choice.reason), recipe, float_type)
    if choice.rank is None:
        return dense
    factors = _build(weight, choice, recipe, float_type)
    assert recipe.decompose is not None
    if factors.predicted_bytes < dense.predicted_bytes or recipe.decompose.ranks is not None:
        return factors
    reason = (
        f"factors of rank {choice.rank} would take {factors.predicted_bytes} bytes, "
        f"the layer takes {dense.predicted_bytes}"
    )
    return dense.model_copy(update={"reason": reason})


def layer_bytes(weight: WeightRef, recipe: Recipe, float_type: FloatType, rank: int) -> int:
    """Store bytes of a layer's factors of some rank, quantized as the recipe says."""
    return _build(weight, RankChoice(rank), recipe, float_type).predicted_bytes


def _build(
    weight: WeightRef, choice: RankChoice, recipe: Recipe, float_type: FloatType
) -> LayerPlan:
    def spec(slot: Slot) -> QuantSpec | None:
        return recipe.quantize.spec_for(weight.name, slot) if recipe.quantize else None

    slots: tuple[Slot, ...] = ("weight",) if choice.rank is None else ("B", "A")
    plan = plan_layer(weight, {slot: spec(slot) for slot in slots}, choice.rank, float_type)
    return plan.model_copy(update={"reason": choice.reason})


def plan_layer(
    weight: WeightRef,
    quantization: Mapping[Slot, QuantSpec | None],
    rank: int | None,
    float_type: FloatType,
) -> LayerPlan:
    """The plan of one layer, in the form that its slots say, with its bytes in a store."""
    form: Form = "dense" if "A" not in quantization else "factors"
    if form == "factors" and "weight" in quantization:
        form = "correction"
    plan = LayerPlan(
        name=weight.name,
        kind=weight.kind,
        block=weight.block,
        shape=weight.shape,
        transposed=weight.transposed,
        form=form,
        rank=rank,
        quantization=dict(quantization),
    )
    size = sum(
        store_bytes(shape, plan.quantization[slot], float_type)
        for slot, shape in plan.slot_shapes().items()
    )
    return plan.model_copy(update={"predicted_bytes": size})
