"""What a JSON schema lets through, in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Linker", "default_words", "value_words"]

Linker = Callable[[str], str]
"""Name of a definition to the Markdown that stands for it."""

_REFERENCE = "#/$defs/"
_NULL = "`null`"
_WORDS = {
    "string": ("text", "texts"),
    "integer": ("whole number", "whole numbers"),
    "number": ("number", "numbers"),
    "array": ("list", "lists"),
    "object": ("mapping", "mappings"),
}


def value_words(schema: Mapping[str, Any], link: Linker) -> str:
    """The values that a schema allows, for one cell of a table.

    `null` is left out where it is the default, which says that it is allowed.
    """
    found = list(dict.fromkeys(_choices(schema, link, plural=False)))
    if len(found) > 1 and schema.get("default", ...) is None:
        found.remove(_NULL)
    return _or(found)


def default_words(schema: Mapping[str, Any], *, required: bool) -> str:
    """The default of a field, for one cell of a table; a dash where it has none to show."""
    if required:
        return "**required**"
    value = schema.get("default", {})
    return "–" if isinstance(value, Mapping) else _literal(value)


def _choices(schema: Mapping[str, Any], link: Linker, plural: bool) -> list[str]:
    """Every alternative by itself."""
    if "$ref" in schema:
        return [link(str(schema["$ref"]).removeprefix(_REFERENCE))]
    union = schema.get("anyOf", schema.get("oneOf"))
    if union is not None and "type" not in schema:
        return [one for part in union for one in _choices(part, link, plural)]
    if "const" in schema:
        return [_literal(schema["const"])]
    if "enum" in schema:
        return [_literal(value) for value in schema["enum"]]
    kind = schema.get("type")
    if kind == "null":
        return [_NULL]
    if kind == "boolean":
        return [_literal(True), _literal(False)]
    if kind == "array":
        word = _WORDS["array"][plural]
        return [f"{word} of {_or(_choices(schema['items'], link, plural=True))}"]
    values = schema.get("additionalProperties")
    if kind == "object" and isinstance(values, Mapping):
        return [f"mapping of texts to {_or(_choices(values, link, plural=True))}"]
    word = _WORDS.get(str(kind), ("any value", "any values"))[plural]
    return [" ".join(filter(None, (word, _bounds(schema))))]


def _bounds(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{low:g} … {high:g}"
    found = {
        "≥": low,
        "&gt;": schema.get("exclusiveMinimum"),
        "≤": high,
        "&lt;": schema.get("exclusiveMaximum"),
    }
    return " and ".join(f"{sign} {value:g}" for sign, value in found.items() if value is not None)


def _literal(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"`[{', '.join(_plain(item) for item in value)}]`"
    return f"`{_plain(value)}`"


def _plain(value: object) -> str:
    """A scalar as a recipe would have it."""
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    return value if isinstance(value, str) and value.isidentifier() else json.dumps(value)


def _or(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"
