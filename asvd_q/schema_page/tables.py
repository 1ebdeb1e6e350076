"""A pydantic model as Markdown: what it is, and a table of its keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from inspect import cleandoc
from typing import Any

from pydantic import BaseModel

from asvd_q.schema_page.values import Linker, default_words, value_words

__all__ = ["field_table", "field_texts", "model_text"]

_ATTRIBUTES = "Attributes:"


def model_text(model: type[BaseModel]) -> str:
    """The docstring of a model up to its attributes."""
    return _escaped(cleandoc(model.__doc__ or "").partition(_ATTRIBUTES)[0].strip())


def field_texts(model: type[BaseModel]) -> dict[str, str]:
    """What every field is: from its own docstring, or the `Attributes:` of its class's.

    A class that says nothing of a field leaves it to the classes it is derived from.
    """
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if isinstance(cls, type) and issubclass(cls, BaseModel) and cls.__doc__:
            found |= _attributes(cleandoc(cls.__doc__))
    own = {name: field.description for name, field in model.model_fields.items()}
    return {name: text or found.get(name, "") for name, text in own.items()}


def field_table(schema: Mapping[str, Any], texts: Mapping[str, str], link: Linker) -> str:
    """A table of the keys that a JSON schema of a mapping has.

    Args:
        texts: what each key is, where the schema does not say it itself.
        link: see `value_words`.
    """
    required = set(schema.get("required", ()))
    lines = ["| key | value | default | |", "|---|---|---|---|"]
    for key, field in schema["properties"].items():
        cells = (
            f"`{key}`",
            value_words(field, link),
            default_words(field, required=key in required),
            _one_line(texts.get(key) or field.get("description", "")),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _attributes(text: str) -> dict[str, str]:
    """Names and sentences under `Attributes:` of a docstring in Google's style."""
    _, found, section = text.partition(_ATTRIBUTES + "\n")
    if not found:
        return {}
    names: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line.strip() and not line.startswith(" "):
            break  # the next section
        begun = re.fullmatch(r" {4}(\w+): (.*)", line)
        if begun:
            name, names[begun[1]] = begun[1], begun[2][:1].upper() + begun[2][1:]
        elif name:
            names[name] += f" {line.strip()}"
    return names


def _one_line(text: str) -> str:
    """Without what a cell of a table would trip over."""
    return _escaped(" ".join(text.split())).replace("|", r"\|")


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace(">", "&gt;")
