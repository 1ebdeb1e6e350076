"""Sections of a recipe from command-line options, with the same checks and messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from asvd_q.errors import RecipeError
from asvd_q.recipe.corpora import EvaluateSection
from asvd_q.recipe.export import ExportSection
from asvd_q.recipe.messages import explain_validation_error
from asvd_q.recipe.overrides import apply_override, parse_override

__all__ = ["evaluate_section", "export_section"]


def evaluate_section(
    corpora: Sequence[str],
    *,
    split: str | None,
    protocol: str,
    window: str | None,
    windows: int | None,
    batch_size: int,
    tasks: Sequence[str] = (),
    shots: int | None = None,
    limit: int | None = None,
) -> EvaluateSection:
    """An `evaluate` section for corpora of one split, and tasks with one number of shots.

    Args:
        split: None takes the one of each corpus that is made for it.
        window, windows: None leaves them to the protocol; 0 windows are all.

    Raises:
        RecipeError: an unknown corpus, a number out of range, or one that nothing reads.
    """
    if not tasks and (shots is not None or limit is not None):
        raise RecipeError("--shots and --limit are for tasks: name one with --task")
    part = {} if split is None else {"split": split}
    fields: dict[str, Any] = {
        "corpora": [{"source": corpus, **part} for corpus in corpora],
        "protocol": protocol,
        "batch_size": batch_size,
        "tasks": [{"task": task, "shots": shots, "limit": limit} for task in tasks],
    }
    if window is not None:
        fields["window"] = int(window) if window.isdecimal() else window
    if windows is not None:
        fields["windows"] = windows or None
    try:
        return EvaluateSection.model_validate(fields)
    except ValidationError as error:
        message = explain_validation_error(error, "evaluate", "options", EvaluateSection)
        raise RecipeError(message) from None


def export_section(format: str, *, name: str | None, options: Sequence[str]) -> ExportSection:
    """An entry of `export`.

    Args:
        name: of the artefact's folder; None takes the format's.
        options: each `KEY=VALUE`; the format's exporter checks what they mean.

    Raises:
        RecipeError: an option that cannot be read, or a name that is no folder name.
    """
    given = {"format": format} | ({} if name is None else {"name": name})
    fields: dict[str, Any] = {}
    for text in options:
        override = parse_override(text, "--option")
        if override.path[0] in ExportSection.model_fields:
            raise RecipeError(f"{override.origin}: this is no option of a format: use --to, --name")
        fields = apply_override(fields, override)
    try:
        return ExportSection.model_validate(fields | given)
    except ValidationError as error:
        message = explain_validation_error(error, "", "asvd-q export", ExportSection)
        raise RecipeError(message) from None
