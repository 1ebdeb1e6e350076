"""A choice as an explicit recipe: with these sections alone, `make_plan` makes the same plan."""

from __future__ import annotations

from asvd_q.plan import LayerPlan, Plan, QuantSpec, Slot
from asvd_q.recipe import QuantizeOverride, QuantizeSection, Recipe

__all__ = ["matrix_override", "with_plan"]


def with_plan(recipe: Recipe, plan: Plan) -> Recipe:
    """The recipe with its budget replaced by what was chosen for it.

    Args:
        recipe: with `budget` and `quantize` sections.
        plan: one of its choices.
    """
    assert recipe.quantize is not None
    decompose = recipe.decompose
    if decompose is not None:
        ranks = plan.ranks
        target = {"ranks": ranks} if ranks else {"kept_ratio": 1.0}
        decompose = decompose.model_copy(update=target)
    correct = recipe.correct
    if correct is not None:
        corrections = plan.correction_ranks
        correct = correct.model_copy(update={"ranks": corrections}) if corrections else None
    own = [
        override
        for layer in plan
        for slot, spec in layer.quantization.items()
        if (override := _override(recipe.quantize, layer, slot, spec)) is not None
    ]
    overrides = (*recipe.quantize.overrides, *own)
    quantize = recipe.quantize.model_copy(update={"overrides": overrides})
    return recipe.model_copy(
        update={"budget": None, "decompose": decompose, "quantize": quantize, "correct": correct}
    )


def _override(
    quantize: QuantizeSection, layer: LayerPlan, slot: Slot, spec: QuantSpec | None
) -> QuantizeOverride | None:
    """What a matrix's settings have to be narrowed by; None where nothing is to be said."""
    if spec == quantize.spec_for(layer.name, slot, layer.vocabulary):
        return None
    return matrix_override(layer, slot, spec)


def matrix_override(layer: LayerPlan, slot: Slot, spec: QuantSpec | None) -> QuantizeOverride:
    """The entry of `quantize.overrides` that says what was chosen for one matrix."""
    if spec is None:
        return QuantizeOverride(match=layer.name, slot=slot, skip=True)
    return QuantizeOverride(match=layer.name, slot=slot, bits=spec.bits, group_size=spec.group_size)
