"""What a recipe can set for one matrix, and how narrower settings go over wider ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    WithJsonSchema,
    model_serializer,
)

from asvd_q.methods import INTEGER_METHODS, METHODS
from asvd_q.plan import QuantSpec, VocabularyPart
from asvd_q.recipe.base import Bool, Section
from asvd_q.spec import NF4_BLOCKS

__all__ = [
    "KEYS",
    "QUANTIZATION_METHODS",
    "Bits",
    "GroupSize",
    "Method",
    "PartialQuantSpec",
    "make_spec",
    "narrowed",
    "require_rows",
]

QUANTIZATION_METHODS = tuple(METHODS)

KEYS = tuple(QuantSpec.model_fields)
"""All settings of all methods."""


def _known_method(method: str) -> str:
    if method not in QUANTIZATION_METHODS:
        raise ValueError(f"no method of that name. Allowed: {', '.join(QUANTIZATION_METHODS)}")
    return method


def _possible_group(size: int) -> int:
    if size != -1 and not 16 <= size <= 256 and size not in NF4_BLOCKS:
        raise ValueError(
            "allowed are -1 (one scale per output channel) and 16 to 256, for nf4 "
            f"{', '.join(map(str, NF4_BLOCKS))}"
        )
    return size


Method = Annotated[
    str,
    Field(strict=True),
    AfterValidator(_known_method),
    WithJsonSchema({"type": "string", "enum": list(QUANTIZATION_METHODS)}),
]
Bits = Annotated[int, Field(strict=True, ge=2, le=8)]
GroupSize = Annotated[
    int,
    Field(strict=True),
    AfterValidator(_possible_group),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": -1},
                {"type": "integer", "minimum": 16, "maximum": 256},
                {"enum": [size for size in NF4_BLOCKS if size > 256]},
            ]
        }
    ),
]
Clip = Literal["minmax", "mse"]
Damping = Annotated[float, Field(strict=True, gt=0, lt=1)]
Backend = Literal["native", "gptqmodel"]


class PartialQuantSpec(Section):
    """Settings that replace those of the wider scope; what is left out is inherited.

    Between rtn and gptq, which make the same kind of codes; nf4 begins with its own defaults.
    """

    method: Method | None = None
    """Quantization method."""

    bits: Bits | None = None
    """Width of a code."""

    group_size: GroupSize | None = None
    """Input channels that share a scale, -1 is one scale per output channel; nf4: block size."""

    symmetric: Bool | None = None
    """Zero point in the middle of the range, so that none is stored; rtn and gptq."""

    clip: Clip | None = None
    """Take the range whole, or shrink it to the smallest squared error; rtn and gptq."""

    act_order: Bool | None = None
    """Begin with the input channels of the largest activations; gptq."""

    static_groups: Bool | None = None
    """Choose all scales first: act_order then needs no permutation in the file; gptq."""

    damping: Damping | None = None
    """Added to the Gram matrix's diagonal, relative to its mean; gptq."""

    backend: Backend | None = None
    """This package's implementation (native) or that of gptqmodel, extra `gptq`; gptq."""

    double_quant: Bool | None = None
    """Quantize the blocks' scales too, to 8 bits; nf4."""

    @model_serializer(mode="wrap")
    def _given_only(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    def settings(self) -> dict[str, Any]:
        """The fields that are given."""
        return {key: value for key in KEYS if (value := getattr(self, key)) is not None}


def narrowed(settings: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Settings with those of a narrower scope over them.

    Under another method only those carry over that it has too, and only where the two make the
    same kind of weight: a group of nf4 is not a group of integer codes.
    """
    before, after = METHODS[settings["method"]], METHODS[given.get("method", settings["method"])]
    kept = settings
    if after is not before:
        shared = after.settings if after.weight == before.weight else ()
        kept = {key: value for key, value in settings.items() if key in shared}
    return kept | given


def make_spec(settings: dict[str, Any], where: str) -> QuantSpec:
    """Settings as a spec. Raises ValueError, beginning with `where`, if they do not go together."""
    try:
        return QuantSpec(**settings)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {reason}") from None


def require_rows(method: str | None, where: str, part: VocabularyPart | None = None) -> None:
    """Raises ValueError, beginning with `where`, for a method that an embedding cannot have.

    Args:
        part: embedding or tied; None where the model is not known, which may tie the head to it.
    """
    if method is not None and method not in INTEGER_METHODS:
        raise ValueError(
            f"{where}: an embedding's rows are looked up one by one, and blocks of {method} reach "
            f"over rows: use {' or '.join(INTEGER_METHODS)}"
        )
    if part == "embedding" and method is not None and METHODS[method].needs_gram:
        raise ValueError(
            f"{where}: {method} needs inputs that are multiplied, and this model's embedding, "
            "which is not its output head too, has none: use method rtn"
        )
