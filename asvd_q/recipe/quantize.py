"""How every stored matrix is quantized: a base, and narrower settings over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from asvd_q.errors import RecipeError
from asvd_q.methods import INTEGER_METHODS, METHODS
from asvd_q.plan import QuantSpec, Slot, VocabularyPart
from asvd_q.recipe.base import Bool, Number, Section, Text, matches
from asvd_q.recipe.quantsettings import (
    KEYS,
    Method,
    PartialQuantSpec,
    make_spec,
    narrowed,
    require_rows,
)

__all__ = ["FULLY_AWARE", "FactorAware", "Factors", "QuantizeOverride", "QuantizeSection"]


class FactorAware(Section):
    """What A is told of B's codes. Both need a calibration, and do nothing without one."""

    refit: Bool = True
    """Fit A anew to B as it was quantized, before A itself is."""

    latent_gram: Bool = True
    """Quantize A for the inputs that the quantized B gives it, not for those of the exact B."""


FULLY_AWARE = FactorAware()
"""A is told all there is to tell."""


class Factors(Section):
    """Settings for the two factors of decomposed layers, and of corrections."""

    aware: FactorAware = FULLY_AWARE
    """What the second factor knows of the first one's quantization."""

    A: PartialQuantSpec = PartialQuantSpec()
    """The factor applied second, (out, rank)."""

    B: PartialQuantSpec = PartialQuantSpec()
    """The factor applied first, (rank, in)."""


class QuantizeOverride(PartialQuantSpec):
    """Settings for the layers that a pattern matches; of several, the last one wins."""

    match: Text
    """Pattern on the layer's full name or its last part."""

    slot: Slot | None = None
    """Only this matrix: weight (of a dense or corrected layer), A or B; null is all of them."""

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


class QuantizeSection(PartialQuantSpec):
    """Quantization of the factors and of the layers that stay dense.

    From wide to narrow: the fields here, then `dense` or `factors`, then `embedding` or `head`,
    then `overrides` in order. What is left out here takes the method's default.
    """

    method: Method = "rtn"
    """Quantization method."""

    include: tuple[Text, ...] = ("*",)
    """Patterns of layers to quantize, on the full name or its last part."""

    exclude: tuple[Text, ...] = ()
    """Patterns of layers to leave in floating point; stronger than `include`."""

    max_error: Annotated[Number, Field(gt=0)] | None = None
    """Relative output error that quantization may add to a layer; one that it would add more to
    stays in floating point, and its record says so. null sets no bound."""

    factors: Factors = Factors()
    """Settings for the factors A and B of decomposed layers, and of corrections."""

    refit: Bool = False
    """Fit each layer that is not factorised to the dense model's outputs, given the inputs that
    the layers compressed before it leave it, before it is quantized; needs
    `calibration.sequential`. `decompose.refit` does the same for factors."""

    refit_damping: Annotated[Number, Field(gt=0)] = 0.01
    """How much refit distrusts the calibration text, relative to the mean of its Gram matrix."""

    dense: Dense = PartialQuantSpec()
    """Settings for layers that stay dense, and for what is corrected; false leaves those in
    floating point."""

    embedding: PartialQuantSpec | None = None
    """Settings for the embedding of tokens, {} for none but the wider ones; rtn with clip mse
    unless they say otherwise. null leaves it in floating point, whatever `include` says. A head
    that shares its matrix is quantized with it."""

    head: PartialQuantSpec | None = None
    """Settings for the output head, likewise. Where it shares the embedding's matrix one of the
    two is enough, and what both say has to be the same."""

    overrides: tuple[QuantizeOverride, ...] = ()
    """Settings by pattern; later entries win over earlier ones."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        given = {key: value for key, value in data.items() if value is not None or key not in KEYS}
        name = given.get("method", "rtn")
        known = METHODS.get(name) if isinstance(name, str) else None
        return given if known is None else {**known.settings, **given}

    @model_validator(mode="after")
    def _every_combination(self) -> QuantizeSection:
        """A method may forbid combinations: find out now, not in the middle of a run."""
        slots: tuple[Slot, ...] = ("weight", "A", "B")
        for slot in slots:
            make_spec(self._base(slot), f"for {slot}")
        for index, override in enumerate(self.overrides):
            for slot in slots if override.slot is None else (override.slot,):
                settings = narrowed(self._base(slot), override.settings())
                make_spec(settings, f"overrides.{index} for {slot}")
        if self.head is not None:
            make_spec(narrowed(self._base("weight"), self.head.settings()), "head")
        if self.embedding is not None:
            make_spec(narrowed(self._base("weight"), self._scope("embedding") or {}), "embedding")
            require_rows(self.embedding.method, "embedding")
        return self

    @property
    def needs_calibration(self) -> str | None:
        """The first method that wants Gram matrices, wherever it is named; None without any."""
        factors, vocabulary = (self.factors.A, self.factors.B), (self.embedding, self.head)
        scopes = (self, self.dense or None, *factors, *vocabulary, *self.overrides)
        names = [scope.method for scope in scopes if scope is not None]
        return next((name for name in names if name and METHODS[name].needs_gram), None)

    def _base(self, slot: Slot) -> dict[str, Any]:
        """Settings before any override."""
        if slot == "weight":
            return narrowed(self.settings(), self.dense.settings() if self.dense else {})
        factor = self.factors.A if slot == "A" else self.factors.B
        return narrowed(self.settings(), factor.settings())

    def covers(self, part: VocabularyPart) -> bool:
        """Whether an embedding or a head is to be quantized."""
        wanted = {"embedding": (self.embedding,), "head": (self.head,)}
        return any(found is not None for found in wanted.get(part, (self.embedding, self.head)))

    def _scope(self, part: VocabularyPart) -> dict[str, Any] | None:
        """What an embedding or a head sets over the wider scopes; None where it is left out.

        Raises:
            RecipeError: the two halves of a tied matrix say different things.
        """
        if not self.covers(part):
            return None
        embedding, head = (
            {} if found is None else found.settings() for found in (self.embedding, self.head)
        )
        if part == "head":
            return head
        given = embedding if part == "embedding" else head | embedding
        for key in embedding.keys() & head.keys() if part == "tied" else ():
            if embedding[key] != head[key]:
                raise RecipeError(
                    f"quantize: embedding.{key} is {embedding[key]} and head.{key} is {head[key]}, "
                    "and in this model the two are one matrix: give one of them"
                )
        multiplied = part == "tied" and self.head is not None and self.method in INTEGER_METHODS
        method = given.get("method") or (self.method if multiplied else "rtn")
        return {"method": method, **({"clip": "mse"} if method == "rtn" else {}), **given}

    def spec_for(
        self, layer_name: str, slot: Slot, part: VocabularyPart | None = None
    ) -> QuantSpec | None:
        """How one matrix is quantized.

        Args:
            layer_name: full dotted name, "model.layers.0.self_attn.q_proj".
            slot: weight of a dense or corrected layer, or A or B of a decomposed or corrected one.
            part: which matrix outside the blocks it is; None inside them.

        Returns:
            The settings; None leaves the matrix in floating point.

        Raises:
            RecipeError: overrides that cannot go together, though each can alone; settings that
                an embedding cannot have.
        """
        scope = None if part is None else self._scope(part)
        settings = self._base(slot)
        if scope is not None:
            settings, skip = narrowed(settings, scope), False
        else:
            if part in ("embedding", "tied"):
                return None
            if not matches(layer_name, self.include) or matches(layer_name, self.exclude):
                return None
            skip = slot == "weight" and self.dense is False
        for override in self.overrides:
            if override.slot in (None, slot) and matches(layer_name, [override.match]):
                settings = narrowed(settings, override.settings())
                skip = skip if override.skip is None else override.skip
        if skip:
            return None
        try:
            if part in ("embedding", "tied"):
                require_rows(settings["method"], f"quantize: {layer_name}", part)
            return make_spec(
                settings, f"quantize: the overrides for {layer_name} ({slot}) disagree"
            )
        except ValueError as error:
            raise RecipeError(str(error)) from None
