"""How matrices may be quantized under a budget. Loads no torch."""

from __future__ import annotations

from asvd_q.plan import QuantSpec, Slot, VocabularyPart
from asvd_q.recipe import Recipe

__all__ = ["settings_on_offer"]


def settings_on_offer(
    recipe: Recipe, layer: str, slot: Slot, part: VocabularyPart | None = None
) -> list[QuantSpec]:
    """The settings of one matrix with every width and group size on offer.

    Args:
        recipe: with `budget` and `quantize` sections.
        layer: its name.
        part: which matrix outside the blocks it is; None inside them.
    """
    budget, quantize = recipe.budget, recipe.quantize
    assert budget is not None
    assert quantize is not None
    base = quantize.spec_for(layer, slot, part)
    if base is None:
        return []
    if base.method == "nf4":  # its width is fixed, and its blocks are its own
        return [base]
    settings = base.model_dump()
    return [
        QuantSpec(**settings | {"bits": bits, "group_size": group})
        for group in budget.group_sizes
        for bits in budget.bits
    ]
