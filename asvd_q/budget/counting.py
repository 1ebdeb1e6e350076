"""What a format stores of a model, in bytes, and what it cannot hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asvd_q.artefact import WHOLE_MODEL, Exporter, Refusal
from asvd_q.plan import FLOAT_BYTES, FloatType, LayerPlan, Plan, QuantSpec

__all__ = ["STORE", "Count"]

STORE = "store"
"""The count of a store: codes at their own width, 16-bit scales, zero points."""


@dataclass(frozen=True)
class Count:
    """The bytes of one format.

    Attributes:
        float_type: of the store that is exported.
        exporter: of the format; None is the store's own count.
    """

    float_type: FloatType
    exporter: Exporter | None = None

    @property
    def name(self) -> str:
        """As recipes and tables call it."""
        return STORE if self.exporter is None else self.exporter.name

    def of_layer(self, layer: LayerPlan) -> int | None:
        """Bytes of a layer's matrices; None where the format cannot hold it.

        What a format refuses of a model as a whole, such as one without any codes, is no reason
        against a layer.
        """
        if self.exporter is None:
            return layer.predicted_bytes
        refusals = self.exporter.can_express(Plan(float_type=self.float_type, layers=(layer,)))
        if any(refusal.layer != WHOLE_MODEL for refusal in refusals):
            return None
        return self.exporter.stored_bytes(layer)

    def refuses_mixtures(self) -> Refusal | None:
        """Why the format cannot hold layers with codes of different widths; None when it can."""
        found = self._refusals([QuantSpec(method="rtn", bits=bits) for bits in (4, 8)])
        return found[0] if found else None

    def refuses_codes(self, specs: Sequence[QuantSpec]) -> Refusal | None:
        """Why the format cannot hold layers of any of these settings; None when it can of one."""
        found = [self._refusals([spec]) for spec in specs]
        return found[0][0] if found and all(found) else None

    def _refusals(self, specs: Sequence[QuantSpec]) -> list[Refusal]:
        """What the format says to dense layers with these settings, side by side."""
        if self.exporter is None:
            return []
        layers = tuple(
            LayerPlan(
                name=f"layers.{number}.weight",
                kind="weight",
                block=number,
                shape=(256, 256),
                quantization={"weight": spec},
            )
            for number, spec in enumerate(specs)
        )
        return self.exporter.can_express(Plan(float_type=self.float_type, layers=layers))

    def of_rest(self, plan: Plan) -> int:
        """Bytes of the tensors that no layer plan covers."""
        if self.exporter is None or self.exporter.float_type is None:
            return plan.other_bytes
        parameters = plan.other_bytes // FLOAT_BYTES[plan.float_type]
        return parameters * FLOAT_BYTES[self.exporter.float_type]

    def of_plan(self, plan: Plan) -> int | None:
        """Bytes of the whole model; None where the format cannot hold one of its layers."""
        layers = [self.of_layer(layer) for layer in plan]
        known = [size for size in layers if size is not None]
        return None if len(known) < len(layers) else sum(known) + self.of_rest(plan)
