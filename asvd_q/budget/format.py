"""The format that a recipe's budget counts in, and whether it leaves a choice. Loads no torch."""

from __future__ import annotations

from asvd_q.artefact import Exporter, TimedExporter
from asvd_q.budget.counting import STORE, Count
from asvd_q.budget.settings import settings_on_offer
from asvd_q.errors import RecipeError
from asvd_q.exporter_registry import timed_exporters
from asvd_q.exporting import make_exporter
from asvd_q.plan import FloatType, Slot
from asvd_q.recipe import ExportSection, Recipe

__all__ = ["format_count", "require_timed"]

_SLOTS: tuple[Slot, ...] = ("weight", "B", "A")


def format_count(
    recipe: Recipe, float_type: FloatType, exports: tuple[tuple[ExportSection, Exporter], ...]
) -> Count:
    """Whose bytes a recipe's budget counts.

    Args:
        exports: of the recipe; a format that is none of them counts with its default options.

    Raises:
        ExportError: no such format.
        RecipeError: the format leaves nothing to choose; or the budget is one of time, and the
            format cannot be timed.
    """
    assert recipe.budget is not None
    count = Count(float_type, _exporter(recipe.budget.format, exports))
    refusal = count.refuses_mixtures()
    if refusal is not None:
        raise RecipeError(
            f"budget.format: {count.name} cannot hold layers that are quantized differently "
            f"({refusal.reason}): use {STORE}, onnx or compressed-tensors; for an export, "
            f"{refusal.instead}"
        )
    if recipe.quantize is not None and not recipe.quantize.overrides:
        specs = [
            spec for slot in _SLOTS for spec in settings_on_offer(recipe, "layers.0.weight", slot)
        ]
        codes = count.refuses_codes(specs)
        if codes is not None:
            raise RecipeError(
                f"budget.format: {count.name} cannot hold what quantize makes: {codes.reason}; "
                f"{codes.instead}"
            )
    if recipe.budget.decode_speed is not None:
        require_timed(count)
    return count


def require_timed(count: Count) -> None:
    """Raises RecipeError when the format has no runtime that can be timed on this machine."""
    if not isinstance(count.exporter, TimedExporter):
        raise RecipeError(
            f"budget.decode_speed is measured in a format's runtime, and the format {count.name} "
            f"has none that can be timed: set budget.format to {' or '.join(timed_exporters())}"
        )


def _exporter(format: str, exports: tuple[tuple[ExportSection, Exporter], ...]) -> Exporter | None:
    if format == STORE:
        return None
    own = (exporter for section, exporter in exports if section.format == format)
    return next(own, None) or make_exporter(format, {}, where="budget.format", file="the recipe")
