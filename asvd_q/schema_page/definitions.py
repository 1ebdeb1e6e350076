"""The models that a JSON schema is made of: which refers to which, and their classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from asvd_q.recipe.lookup import models_at

__all__ = ["Definitions", "definitions_in"]

_REFERENCE = re.compile(r"#/\$defs/(\w+)")


class Definitions:
    """The JSON schema of a model, and what lies in it."""

    def __init__(self, model: type[BaseModel]) -> None:
        """Args: model: of the whole file."""
        self.model = model

    @cached_property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the file."""
        return self.model.model_json_schema(mode="validation")

    @cached_property
    def sections(self) -> dict[str, str]:
        """Keys of the file whose values are mappings of their own: key → definition."""
        return {
            key: found[0]
            for key, field in self.schema["properties"].items()
            if (found := list(definitions_in(field)))
        }

    @cached_property
    def models(self) -> dict[str, type[BaseModel]]:
        """Definition → class."""
        known: dict[str, type[BaseModel]] = {}
        waiting = [self.model]
        while waiting:
            model = waiting.pop()
            known[model.__name__] = model
            for field in model.model_fields:
                waiting += [one for one in models_at(model, [field]) if one.__name__ not in known]
        return known

    def schema_of(self, definition: str) -> dict[str, Any]:
        """JSON schema of one of them."""
        found: dict[str, Any] = self.schema["$defs"][definition]
        return found

    def held(self, definition: str) -> list[str]:
        """All that one refers to, those that it names itself first."""
        found: list[str] = []
        waiting = [definition]
        while waiting:
            for name in definitions_in(self.schema_of(waiting.pop(0))):
                if name not in found and name != definition:
                    found.append(name)
                    waiting.append(name)
        return found


def definitions_in(schema: object) -> Iterator[str]:
    """Names of the definitions that a part of a schema refers to, in its order."""
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            found = _REFERENCE.fullmatch(str(value)) if key == "$ref" else None
            if found is not None:
                yield found[1]
            else:
                yield from definitions_in(value)
    elif isinstance(schema, (list, tuple)):
        for value in schema:
            yield from definitions_in(value)
