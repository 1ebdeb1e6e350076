"""From a recipe and a model's structure to a plan. Reads no weights and runs nothing."""

from __future__ import annotations

from asvd_q.models.refs import WeightRef
from asvd_q.models.skeleton import Skeleton
from asvd_q.models.source import SourceModel
from asvd_q.plan import FLOAT_BYTES, FloatType, LayerPlan, Plan, QuantSpec, Slot, store_bytes
from asvd_q.recipe import Recipe
from asvd_q.search.uniform import RankChoice, explicit_ranks, uniform_ranks

__all__ = ["make_plan"]


def make_plan(
    recipe: Recipe, source: SourceModel, skeleton: Skeleton, float_type: FloatType
) -> Plan:
    """Decide form, rank and quantization of every layer.

    Raises:
        RankError: explicit ranks that do not fit the model.
    """
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

    A head tied to the embedding never is: changing it would store the matrix a second time.
    """
    if weight.block is not None:
        return True
    wanted = recipe.decompose is not None and recipe.decompose.lm_head
    return wanted and not skeleton.head_is_tied


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


def _build(
    weight: WeightRef, choice: RankChoice, recipe: Recipe, float_type: FloatType
) -> LayerPlan:
    def spec(slot: Slot) -> QuantSpec | None:
        return recipe.quantize.spec_for(weight.name, slot) if recipe.quantize else None

    slots: tuple[Slot, ...] = ("weight",) if choice.rank is None else ("B", "A")
    plan = LayerPlan(
        name=weight.name,
        kind=weight.kind,
        block=weight.block,
        shape=weight.shape,
        transposed=weight.transposed,
        form="dense" if choice.rank is None else "factors",
        rank=choice.rank,
        quantization={slot: spec(slot) for slot in slots},
        reason=choice.reason,
    )
    size = sum(
        store_bytes(shape, plan.quantization[slot], float_type)
        for slot, shape in plan.slot_shapes().items()
    )
    return plan.model_copy(update={"predicted_bytes": size})
