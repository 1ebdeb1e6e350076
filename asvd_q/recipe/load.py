"""From a YAML file and overrides to a checked recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from asvd_q.errors import RecipeError
from asvd_q.recipe.messages import explain, first_problem
from asvd_q.recipe.overrides import Override, apply_override, parse_override
from asvd_q.recipe.schema import Recipe
from asvd_q.recipe.text import parse_yaml

__all__ = ["check_recipe", "load_recipe", "read_mapping"]


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Paths of the model and of corpora are looked up relative to the recipe's folder, then to the
    current directory, and made absolute where they exist. `output` stays relative to the
    current directory and is runs/<name of the recipe file> unless it is given.

    Args:
        path: the YAML file.
        overrides: each `KEY.KEY=VALUE`, applied in order; values are YAML.

    Raises:
        RecipeError: one line that names the file, the key as it was written, its value and
            what is allowed.
    """
    file = Path(path)
    return check_recipe(read_mapping(file), [parse_override(text) for text in overrides], file)


def check_recipe(
    content: dict[str, Any],
    overrides: Sequence[Override],
    file: Path,
    *,
    folders: Sequence[Path] = (),
) -> Recipe:
    """Override and check a recipe that has been read.

    Args:
        content: of the file; it is not changed.
        overrides: applied in order.
        file: where the content came from.
        folders: where paths are looked up between the recipe's folder and the current directory.

    Raises:
        RecipeError: as `load_recipe`; the message names the override that is at fault.
    """
    for override in overrides:
        content = apply_override(content, override)
    content = {"output": f"runs/{file.stem}", **content}
    try:
        return Recipe.model_validate(content, context={"folders": [file.parent, *folders]})
    except ValidationError as error:
        problem = first_problem(error, content, Recipe)
        raise RecipeError(explain(problem, _origin(problem.path, overrides, file))) from None


def read_mapping(file: Path, what: str = "recipe", needs: str = "model") -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Args:
        what: the file is, for messages.
        needs: the key that it cannot do without, for messages.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or holds something else.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecipeError(f"cannot read the {what} {file}: {reason}") from None
    content = parse_yaml(text, str(file))
    if not isinstance(content, dict):
        found = "empty" if content is None else f"a {type(content).__name__}"
        raise RecipeError(f"{file}: a {what} is a mapping with at least `{needs}`; this is {found}")
    return content


def _origin(path: tuple[str, ...], overrides: Sequence[Override], file: Path) -> str:
    """The override that wrote the value at fault, or the file with one that touched it."""
    for override in reversed(overrides):
        if path[: len(override.path)] == override.path:
            return override.origin
        if path and override.path[: len(path)] == path:
            return f"{file} with {override.origin}"
    return str(file)
