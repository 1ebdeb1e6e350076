"""From a study to its points: every combination of values that it does not leave out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from asvd_q.errors import RecipeError
from asvd_q.recipe import Recipe
from asvd_q.recipe.load import check_recipe
from asvd_q.recipe.overrides import Override
from asvd_q.study.labels import Choice, choices_of, is_meant
from asvd_q.study.schema import StudySection

__all__ = ["Only", "Point", "expand"]

Only = Mapping[str, Sequence[Any]]
"""Key → the values to keep, by name or by value."""


@dataclass(frozen=True)
class Point:
    """One recipe of a study.

    Attributes:
        settings: varied key → what its value is called.
        repeat: the same for repeated keys.
        recipe: with the values in it; it exports nothing and does no tasks.
    """

    settings: Mapping[str, str]
    repeat: Mapping[str, str]
    recipe: Recipe

    @property
    def title(self) -> str:
        """All its settings in one line."""
        return ", ".join(
            f"{key} {label}" for key, label in {**self.settings, **self.repeat}.items()
        )


def expand(
    study: StudySection,
    content: dict[str, Any],
    file: Path,
    *,
    origin: str = "the study",
    folders: Sequence[Path] = (),
    only: Only | None = None,
) -> list[Point]:
    """All points of a study, checked.

    Args:
        content: of the recipe file.
        file: the recipe's path, from which its own paths are looked up.
        origin: what the study is called in messages.
        folders: where else to look paths up.
        only: leave all other points out.

    Raises:
        RecipeError: a combination that is no valid recipe, does not evaluate, or none left.
    """
    _require_known(study, only or {}, origin)
    common = [
        _override(Choice(key, "", value), f"{origin}: set") for key, value in study.set.items()
    ]
    points = []
    for chosen in _combinations(study, origin, only or {}):
        overrides = [*common, *(_override(choice, f"{origin}: vary") for choice in chosen)]
        recipe = check_recipe(content, overrides, file, folders=folders)
        if recipe.evaluate is None or not recipe.evaluate.corpora:
            raise RecipeError(
                f"{file}: a study compares perplexities, and the recipe has no corpora in an "
                "`evaluate` section: add them, or `evaluate.corpora` to the study's `set`"
            )
        evaluate = recipe.evaluate.model_copy(update={"tasks": ()})
        recipe = recipe.model_copy(update={"evaluate": evaluate})
        if recipe.budget is None:
            # A budget is counted in the bytes of the format; nothing else here depends on it.
            recipe = recipe.model_copy(update={"export": ()})
        points.append(
            Point(
                settings={one.key: one.label for one in chosen if one.key in study.vary},
                repeat={one.key: one.label for one in chosen if one.key in study.repeat},
                recipe=recipe,
            )
        )
    if not points:
        raise RecipeError(f"{origin}: no combination is left: `without` leaves all of them out")
    return points


def _combinations(study: StudySection, origin: str, only: Only) -> Iterator[tuple[Choice, ...]]:
    lists = []
    for key in (*study.vary, *study.repeat):
        found = choices_of(key, study.values(key), origin)
        if key in only:
            for wanted in only[key]:
                if not any(is_meant(choice, wanted) for choice in found):
                    names = ", ".join(choice.label for choice in found)
                    raise RecipeError(f"--only {key}={wanted}: its values are {names}")
            found = [one for one in found if any(is_meant(one, wanted) for wanted in only[key])]
        lists.append(found)
    for chosen in product(*lists):
        if not any(_fits(chosen, left_out) for left_out in study.without):
            yield chosen


def _fits(chosen: Sequence[Choice], left_out: Mapping[str, Any]) -> bool:
    """Whether a combination has all that is named."""
    by_key = {choice.key: choice for choice in chosen}
    return all(is_meant(by_key[key], wanted) for key, wanted in left_out.items())


def _override(choice: Choice, flag: str) -> Override:
    text = f"{choice.key}={choice.label or choice.value}"
    return Override(text, tuple(choice.key.split(".")), choice.value, flag)


def _require_known(study: StudySection, only: Only, origin: str) -> None:
    for key in only:
        if key not in study.vary and key not in study.repeat:
            known = ", ".join((*study.vary, *study.repeat))
            raise RecipeError(f"--only {key}: {origin} varies {known}")
