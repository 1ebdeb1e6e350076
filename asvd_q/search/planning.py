"""From a recipe and a model's structure to a plan. Reads no weights and runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from asvd_q.errors import RankError, RecipeError
from asvd_q.models.inputs import shared_inputs
from asvd_q.models.refs import WeightRef
from asvd_q.models.skeleton import Skeleton
from asvd_q.models.source import SourceModel
from asvd_q.plan import (
    FLOAT_BYTES,
    SLOTS,
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

__all__ = ["covered_weights", "float_plan", "layer_bytes", "make_plan", "plan_layer"]


def make_plan(
    recipe: Recipe, source: SourceModel, skeleton: Skeleton, float_type: FloatType
) -> Plan:
    """Decide form, rank and quantization of every layer.

    Raises:
        RankError: explicit ranks that do not fit the model.
        RecipeError: a pattern that matches no layer, a head that cannot be decomposed, or a layer
            that is to be factorised and corrected.
    """
    weights = covered_weights(recipe, skeleton)
    names = [weight.name for weight in skeleton.weights]
    _check_patterns(recipe, [*names, *(one.name for one in weights if one.role == "embedding")])
    lm_head = recipe.decompose is not None and recipe.decompose.lm_head
    choices = dict.fromkeys((weight.name for weight in weights), RankChoice(None)) | _choose_ranks(
        recipe, [weight for weight in weights if weight.block is not None or lm_head]
    )
    corrections = _correction_ranks(recipe, weights, choices)
    layers = tuple(
        _corrected(weight, corrections[weight.name], recipe, float_type)
        if weight.name in corrections
        else _layer(weight, choices[weight.name], recipe, float_type)
        for weight in weights
    )
    return Plan(
        float_type=float_type,
        layers=layers,
        other_bytes=_other_bytes(weights, source, float_type),
        one_factor=_one_factor(recipe, skeleton),
    )


def float_plan(
    recipe: Recipe, source: SourceModel, skeleton: Skeleton, float_type: FloatType
) -> Plan:
    """The layers that a recipe looks at, all as they are.

    Raises:
        RecipeError: as `covered_weights`.
    """
    weights = covered_weights(recipe, skeleton)
    return Plan(
        float_type=float_type,
        layers=tuple(plan_layer(one, {"weight": None}, None, float_type) for one in weights),
        other_bytes=_other_bytes(weights, source, float_type),
    )


def covered_weights(recipe: Recipe, skeleton: Skeleton) -> list[WeightRef]:
    """All weights that a recipe looks at, in model order.

    Layers inside the blocks always are; embedding and head only when the recipe asks for it. Where
    these are one matrix the embedding stands for both.

    Raises:
        RecipeError: an embedding or a head that is asked for and cannot be had.
    """
    inside = [weight for weight in skeleton.weights if weight.block is not None]
    head = [weight for weight in skeleton.weights if weight.block is None]
    quantize = recipe.quantize
    if recipe.decompose is not None and recipe.decompose.lm_head and skeleton.head_is_tied:
        raise RecipeError(
            f"decompose.lm_head: {skeleton.head} is the embedding's own matrix in this model, and "
            "factors of it would be stored beside it: leave lm_head out"
        )
    of_embedding = quantize is not None and quantize.covers(
        "tied" if skeleton.head_is_tied else "embedding"
    )
    of_head = quantize is not None and quantize.covers("head") and not skeleton.head_is_tied
    if of_embedding and skeleton.embedding is None:
        found = skeleton.model.get_input_embeddings()  # type: ignore[operator]
        raise RecipeError(
            f"quantize.embedding: {type(skeleton.model).__name__} begins with a "
            f"{type(found).__name__}, and only torch's own Embedding, and classes derived from "
            "it, can be quantized: leave embedding out"
        )
    if of_head and not head:
        raise RecipeError(
            f"quantize.head: {type(skeleton.model).__name__} has no linear output head: leave "
            "head out"
        )
    if not of_head and not (recipe.decompose is not None and recipe.decompose.lm_head):
        head = []
    first = [skeleton.embedding] if of_embedding and skeleton.embedding is not None else []
    return [*first, *inside, *head]


def _other_bytes(weights: Iterable[WeightRef], source: SourceModel, float_type: FloatType) -> int:
    """Of the tensors that no layer plan covers."""
    left = sum(info.numel for info in source.tensors.values())
    for weight in weights:
        left -= weight.shape[0] * weight.shape[1]
        twin = None if weight.tied is None else source.resolve(f"{weight.tied}.weight")
        if twin is not None and source.resolve(weight.tensor_name) not in (None, twin):
            left -= source.tensors[twin].numel  # a copy in the files that no artefact has
    return left * FLOAT_BYTES[float_type]


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
    if recipe.correct is not None:
        patterns["correct.include"] = recipe.correct.include
        patterns["correct.exclude"] = recipe.correct.exclude
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


def _correction_ranks(
    recipe: Recipe, weights: list[WeightRef], choices: dict[str, RankChoice]
) -> dict[str, int]:
    """Rank of every layer that `correct` gives one.

    Args:
        choices: what `decompose` does with the layers.
    """
    section = recipe.correct
    if section is None:
        return {}
    linear = (weight for weight in weights if weight.role == "linear")
    included = [weight for weight in linear if section.selects(weight.name)]
    if section.rank is not None:
        for weight in included:
            if section.rank > min(weight.shape):
                raise RankError(
                    f"correct.rank: {section.rank} is above {min(weight.shape)} for {weight.name}, "
                    f"whose shape is {weight.shape}"
                )
        found = dict.fromkeys((weight.name for weight in included), section.rank)
    else:
        assert section.ranks is not None
        explicit = explicit_ranks(included, section.ranks, "correct.ranks")
        found = {name: item.rank for name, item in explicit.items() if item.rank is not None}
    for name, rank in found.items():
        if choices[name].rank is not None:
            raise RecipeError(
                f"{name}: `decompose` makes factors of rank {choices[name].rank} of it, and "
                f"`correct` would correct it with rank {rank}: exclude it from one of the two"
            )
    return found


def _one_factor(recipe: Recipe, skeleton: Skeleton) -> tuple[tuple[str, ...], ...]:
    """The method that reads B from the input alone gives all layers of an input the same."""
    if recipe.correct is None or recipe.correct.method != "inside":
        return ()
    return shared_inputs(skeleton)


def _corrected(weight: WeightRef, rank: int, recipe: Recipe, float_type: FloatType) -> LayerPlan:
    dense = _build(weight, "dense", RankChoice(None), recipe, float_type)
    if dense.quantization["weight"] is None:
        reason = "its weight is not quantized, so there is nothing to correct"
        return dense.model_copy(update={"reason": reason})
    return _build(weight, "correction", RankChoice(rank), recipe, float_type)


def _layer(
    weight: WeightRef, choice: RankChoice, recipe: Recipe, float_type: FloatType
) -> LayerPlan:
    dense = _build(weight, "dense", RankChoice(None, choice.reason), recipe, float_type)
    if choice.rank is None:
        return dense
    factors = _build(weight, "factors", choice, recipe, float_type)
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
    return _build(weight, "factors", RankChoice(rank), recipe, float_type).predicted_bytes


def _build(
    weight: WeightRef, form: Form, choice: RankChoice, recipe: Recipe, float_type: FloatType
) -> LayerPlan:
    def spec(slot: Slot) -> QuantSpec | None:
        if recipe.quantize is None:
            return None
        return recipe.quantize.spec_for(weight.name, slot, weight.vocabulary)

    plan = plan_layer(weight, {slot: spec(slot) for slot in SLOTS[form]}, choice.rank, float_type)
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
        subclass=weight.subclass,
        role=weight.role,
        tied=weight.tied,
        form=form,
        rank=rank,
        quantization=dict(quantization),
    )
    size = sum(
        store_bytes(shape, plan.quantization[slot], float_type)
        for slot, shape in plan.slot_shapes().items()
    )
    return plan.model_copy(update={"predicted_bytes": size})
