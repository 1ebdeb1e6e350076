"""`--set decompose.alpha=0.4`: values put into a recipe before it is checked; `--option` too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asvd_q.errors import RecipeError
from asvd_q.recipe.text import parse_yaml

__all__ = ["Override", "apply_override", "parse_override"]


@dataclass(frozen=True)
class Override:
    """One `--set`.

    Attributes:
        text: as it was written.
        path: keys and list indices from the top of the recipe.
        value: parsed as YAML.
        flag: the option of the command line that it was given with.
    """

    text: str
    path: tuple[str, ...]
    value: Any
    flag: str = "--set"

    @property
    def origin(self) -> str:
        """What a message calls it."""
        return f"{self.flag} {self.text}"


def parse_override(text: str, flag: str = "--set") -> Override:
    """Read `KEY.KEY=VALUE`.

    Raises:
        RecipeError: no `=`, an empty key, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        example = "decompose.alpha=0.4" if flag == "--set" else "dtype=float16"
        raise RecipeError(f"{flag} {text}: write KEY=VALUE, for example {example}")
    return Override(text, path, parse_yaml(value, f"{flag} {text}"), flag)


def apply_override(recipe: dict[str, Any], override: Override) -> dict[str, Any]:
    """A copy of the recipe's mapping with one value replaced; missing sections are made.

    A number after a list picks an entry; the number after the last one appends.

    Raises:
        RecipeError: the path goes through a plain value, or past the end of a list.
    """
    replaced: dict[str, Any] = _replaced(recipe, override, 0)
    return replaced


def _replaced(node: Any, override: Override, depth: int) -> Any:
    if depth == len(override.path):
        return override.value
    key = override.path[depth]
    here = ".".join(override.path[:depth])
    if node is None:
        node = [] if key == "0" else {}
    if isinstance(node, list):
        if not key.isdecimal() or int(key) > len(node):
            raise RecipeError(
                f"{override.origin}: {here} is a list of {len(node)}: {key!r} must be a number "
                f"from 0 to {len(node)}"
            )
        index = int(key)
        old = node[index] if index < len(node) else None
        return [*node[:index], _replaced(old, override, depth + 1), *node[index + 1 :]]
    if isinstance(node, dict):
        return {**node, key: _replaced(node.get(key), override, depth + 1)}
    raise RecipeError(
        f"{override.origin}: {here} is the plain value {node!r} and has no {key!r} in it: "
        f"set {here} as a whole"
    )
