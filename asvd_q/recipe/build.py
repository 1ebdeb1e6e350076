"""Sections of a recipe from command-line options, with the same checks and messages."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from asvd_q.errors import RecipeError
from asvd_q.recipe.corpora import EvaluateSection
from asvd_q.recipe.messages import explain_validation_error

__all__ = ["evaluate_section"]


def evaluate_section(
    corpora: Sequence[str], *, split: str, window: int, windows: int | None, batch_size: int
) -> EvaluateSection:
    """An `evaluate` section for corpora of one split.

    Raises:
        RecipeError: an unknown corpus, or a number out of range.
    """
    fields = {
        "corpora": [{"source": corpus, "split": split} for corpus in corpora],
        "window": window,
        "windows": windows,
        "batch_size": batch_size,
    }
    try:
        return EvaluateSection.model_validate(fields)
    except ValidationError as error:
        message = explain_validation_error(error, "evaluate", "options", EvaluateSection)
        raise RecipeError(message) from None
