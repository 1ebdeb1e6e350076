"""How every stored matrix is quantized: a base, and narrower settings over it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from asvd_q.plan import QuantSpec, Slot
from asvd_q.recipe.base import Bool, Section, Text, matches

__all__ = [
    "QUANTIZATION_METHODS",
    "Factors",
    "PartialQuantSpec",
    "QuantizeOverride",
    "QuantizeSection",
]

QUANTIZATION_METHODS = ("rtn",)
"""Every name of `asvd_q.quantization.METHODS`, which cannot be imported here: it needs torch."""


def _known_method(method: str) -> str:
    if method not in QUANTIZATION_METHODS:
        raise ValueError(f"no method of that name. Allowed: {', '.join(QUANTIZATION_METHODS)}")
    return method


def _possible_group(size: int) -> int:
    if size != -1 and not 16 <= size <= 256:
        raise ValueError("allowed are -1 (one scale per output channel) and 16 to 256")
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
    WithJsonSchema({"anyOf": [{"const": -1}, {"type": "integer", "minimum": 16, "maximum": 256}]}),
]
Clip = Literal["minmax", "mse"]

_KEYS = tuple(QuantSpec.model_fields)


class PartialQuantSpec(Section):
    """Settings that replace those of the wider scope; what is left out is inherited."""

    method: Method | None = None
    """Quantization method."""

    bits: Bits | None = None
    """Width of a code."""

    group_size: GroupSize | None = None
    """Input channels that share a scale; -1 is one scale per output channel."""

    symmetric: Bool | None = None
    """Zero point in the middle of the range, so that none is stored."""

    clip: Clip | None = None
    """Take the range whole, or shrink it to the smallest squared error."""

    @model_serializer(mode="wrap")
    def _given_only(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    def settings(self) -> dict[str, Any]:
        """The fields that are given."""
        return {key: value for key in _KEYS if (value := getattr(self, key)) is not None}


class Factors(Section):
    """Settings for the two factors of decomposed layers."""

    A: PartialQuantSpec = PartialQuantSpec()
    """The factor applied second, (out, rank)."""

    B: PartialQuantSpec = PartialQuantSpec()
    """The factor applied first, (rank, in)."""


class QuantizeOverride(PartialQuantSpec):
    """Settings for the layers that a pattern matches; of several, the last one wins."""

    match: Text
    """Pattern on the layer's full name or its last part."""

    slot: Slot | None = None
    """Only this matrix: weight (of a dense layer), A or B; null is all of them."""

    skip: Bool | None = None
    """true leaves the matrix in floating point; false takes back an earlier decision to."""


def _dense_kind(value: Any) -> str | None:
    if value is False:
        return "false"
    return "settings" if isinstance(value, (dict, PartialQuantSpec)) else None


Dense = Annotated[
    Annotated[PartialQuantSpec, Tag("settings")] | Annotated[Literal[False], Tag("false")],
    Discriminator(
        _dense_kind,
        custom_error_type="dense_choice",
        custom_error_message="allowed is false, which leaves dense layers in floating point, "
        "or a mapping of settings",
    ),
]


class QuantizeSection(Section):
    """Quantization of the factors and of the layers that stay dense.

    From wide to narrow: the fields here, then `dense` or `factors`, then `overrides` in order.
    """

    method: Method = "rtn"
    """Quantization method."""

    bits: Bits = 8
    """Width of a code."""

    group_size: GroupSize = 128
    """Input channels that share a scale; -1 is one scale per output channel."""

    symmetric: Bool = True
    """Zero point in the middle of the range, so that none is stored."""

    clip: Clip = "minmax"
    """Take the range whole, or shrink it to the smallest squared error."""

    include: tuple[Text, ...] = ("*",)
    """Patterns of layers to quantize, on the full name or its last part."""

    exclude: tuple[Text, ...] = ()
    """Patterns of layers to leave in floating point; stronger than `include`."""

    factors: Factors = Factors()
    """Settings for the factors A and B of decomposed layers."""

    dense: Dense = PartialQuantSpec()
    """Settings for layers that stay dense; false leaves those in floating point."""

    overrides: tuple[QuantizeOverride, ...] = ()
    """Settings by pattern; later entries win over earlier ones."""

    @model_validator(mode="after")
    def _every_combination(self) -> QuantizeSection:
        """A method may forbid combinations: find out now, not in the middle of a run."""
        slots: tuple[Slot, ...] = ("weight", "A", "B")
        for slot in slots:
            _spec(self._base(slot), f"for {slot}")
        for index, override in enumerate(self.overrides):
            for slot in slots if override.slot is None else (override.slot,):
                _spec(self._base(slot) | override.settings(), f"overrides.{index} for {slot}")
        return self

    def _base(self, slot: Slot) -> dict[str, Any]:
        """Settings before any override."""
        base = {key: getattr(self, key) for key in _KEYS}
        if slot == "weight":
            return base | (self.dense.settings() if self.dense else {})
        factor = self.factors.A if slot == "A" else self.factors.B
        return base | factor.settings()

    def spec_for(self, layer_name: str, slot: Slot) -> QuantSpec | None:
        """How one matrix is quantized.

        Args:
            layer_name: full dotted name, "model.layers.0.self_attn.q_proj".
            slot: weight of a dense layer, or A or B of a decomposed one.

        Returns:
            The settings; None leaves the matrix in floating point.
        """
        if not matches(layer_name, self.include) or matches(layer_name, self.exclude):
            return None
        settings = self._base(slot)
        skip = slot == "weight" and self.dense is False
        for override in self.overrides:
            if override.slot in (None, slot) and matches(layer_name, [override.match]):
                settings |= override.settings()
                skip = skip if override.skip is None else override.skip
        return None if skip else QuantSpec(**settings)


def _spec(settings: dict[str, Any], where: str) -> QuantSpec:
    try:
        return QuantSpec(**settings)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {reason}") from None
