"""From a study's file and options to its points."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from asvd_q.errors import RecipeError
from asvd_q.recipe.load import read_mapping
from asvd_q.recipe.messages import explain, first_problem
from asvd_q.recipe.overrides import Override, parse_override
from asvd_q.study.grid import Point, expand
from asvd_q.study.schema import StudySection

__all__ = ["LoadedStudy", "load_study"]


@dataclass(frozen=True)
class LoadedStudy:
    """A study that has been read and checked, and its points."""

    section: StudySection
    points: tuple[Point, ...]

    @property
    def output(self) -> Path:
        """Where its points and its results lie."""
        return Path(self.section.output)

    @property
    def title(self) -> str:
        """Its name, or its folder's."""
        return self.section.name or self.output.name


def load_study(
    path: Path | str, overrides: Sequence[str] = (), only: Sequence[str] = ()
) -> LoadedStudy:
    """Read a study, override values in it, and check every point.

    Args:
        path: the YAML file.
        overrides: each `KEY.KEY=VALUE` with a key of the recipe, put in all points; of a key that
            the study varies or repeats, VALUE takes the place of its values. `output` is the
            study's.
        only: each `KEY=VALUE`; of that key, only the points with this value, or with one of
            those that are given, are kept.

    Raises:
        RecipeError: one line that names the file, the key and what is wrong.
    """
    file = Path(path)
    content = read_mapping(file, "study", "recipe")
    content.setdefault("output", f"runs/studies/{file.stem}")
    for text in overrides:
        content = _overridden(content, parse_override(text))
    try:
        section = StudySection.model_validate(content)
    except ValidationError as error:
        raise RecipeError(explain(first_problem(error, content, StudySection), str(file))) from None
    kept: dict[str, list[Any]] = {}
    for text in only:
        override = parse_override(text, "--only")
        kept.setdefault(".".join(override.path), []).append(override.value)
    recipe = _found(section.recipe, file)
    points = expand(
        section,
        read_mapping(recipe),
        recipe,
        origin=str(file),
        folders=[file.parent],
        only=kept,
    )
    return LoadedStudy(section, tuple(points))


def _overridden(content: dict[str, Any], override: Override) -> dict[str, Any]:
    """The study's mapping with a value put where it belongs."""
    key, value = ".".join(override.path), override.value
    if key == "output":
        return {**content, "output": value}
    for name in ("vary", "repeat"):
        values = content.get(name)
        if isinstance(values, dict) and key in values:
            several = isinstance(value, list | dict)
            return {**content, name: {**values, key: value if several else [value]}}
    given = content.get("set")
    return {**content, "set": {**(given if isinstance(given, dict) else {}), key: value}}


def _found(recipe: str, study: Path) -> Path:
    """The recipe's file: beside the study, or from the current directory."""
    beside = study.parent / os.path.expanduser(recipe)
    return beside if beside.is_file() else Path(os.path.expanduser(recipe))
