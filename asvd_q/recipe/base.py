"""What all sections of a recipe share: strict types, patterns, and unknown keys refused."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

__all__ = ["Bool", "Bos", "Count", "Number", "Section", "ShortSection", "Text", "matches"]

Text = Annotated[str, Field(strict=True, min_length=1)]
Bool = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, Field(strict=True)]

Bos = Literal["auto", True, False]
"""Whether a window starts with the BOS token; `auto` does what the tokenizer itself does."""


class Section(BaseModel):
    """A part of a recipe. Its attribute docstrings are the help that editors show."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=False,
    )


class ShortSection(Section):
    """One that a plain string may stand for; what it means is the section's own validator's."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        mapping = handler.resolve_ref_schema(handler(core_schema))
        mapping["type"] = ["object", "string"]
        return mapping


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a layer's full dotted name, or its last part, fits one of the patterns.

    Patterns are those of `fnmatch`, with case: `*.self_attn.q_proj`, `model.layers.0.*`,
    `q_proj`.
    """
    last = name.rsplit(".", 1)[-1]
    return any(fnmatchcase(name, pattern) or fnmatchcase(last, pattern) for pattern in patterns)
