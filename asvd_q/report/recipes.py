"""A run's resolved recipe as plain values, for what is said of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from asvd_q.compressing import RECIPE_FILE
from asvd_q.recipe.text import parse_yaml

__all__ = ["flatten", "hub_corpora", "read_recipe", "without_places"]

_HUB = "hub:"
_LISTS = ("ranks", "overrides")
"""Keys whose content is one value: one entry for each of many layers."""


def read_recipe(folder: Path) -> dict[str, Any] | None:
    """`recipe.yaml` of a run folder, unchecked; None where it is gone.

    A later version may not take the recipe any more, and what it was can still be said.

    Raises:
        RecipeError: not YAML.
    """
    path = folder / RECIPE_FILE
    if not path.is_file():
        return None
    found = parse_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))
    return found if isinstance(found, dict) else None


def without_places(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with every absolute path reduced to the name at its end."""
    return {key: _without(value) for key, value in recipe.items()}


def flatten(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key: "decompose.alpha", "export.0.format"; ranks and overrides stay whole.

    Sections that are empty or null are values too.
    """
    return dict(_flat(recipe, ""))


def hub_corpora(recipe: Mapping[str, Any], section: str) -> list[str]:
    """Data sets of the hub that a section reads, by their names there."""
    corpora = (recipe.get(section) or {}).get("corpora") or ()
    sources = [str(corpus.get("source", "")) for corpus in corpora]
    names = (source.split(":")[1] for source in sources if source.startswith(_HUB))
    return list(dict.fromkeys(names))


def _without(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without(item) for item in value]
    if not isinstance(value, str):
        return value
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(value)
        if path.is_absolute() or value.startswith("~"):
            return path.name or "."
    return value


def _flat(value: Any, key: str) -> list[tuple[str, Any]]:
    if key.rpartition(".")[2] in _LISTS or not isinstance(value, Mapping | list) or not value:
        return [(key, value)]
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    found: list[tuple[str, Any]] = []
    for name, item in items:
        found += _flat(item, f"{key}.{name}" if key else str(name))
    return found
