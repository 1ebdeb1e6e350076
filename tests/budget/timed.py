"""An exporter that can be timed and has no runtime: its times are a formula, its calls counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from pydantic import BaseModel, ConfigDict

from asvd_q.artefact import Exporter, Refusal
from asvd_q.budget.counting import Count
from asvd_q.plan import LayerPlan, Plan, QuantSpec, store_bytes

__all__ = ["Timed", "TimedOptions", "count_of", "expected"]

Shape = tuple[int, int]


class TimedOptions(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    level: int = 0


def expected(shape: Shape, spec: QuantSpec | None) -> int:
    """Nanoseconds: wide codes cost more, and two bits are slow."""
    bits = 32 if spec is None else {2: 40, 3: 4}.get(spec.bits, spec.bits)
    return 100 + shape[0] * shape[1] * bits


class Timed:
    """The part of an exporter that a budget of time uses."""

    name = "timed"
    options_model = TimedOptions
    float_type = None

    def __init__(self, options: TimedOptions | None = None, runtime: str = "formula 1.0") -> None:
        self.options = options or TimedOptions()
        self.runtime = runtime
        self.calls: list[list[tuple[Shape, QuantSpec | None]]] = []

    def can_express(self, plan: Plan) -> list[Refusal]:
        return []

    def stored_bytes(self, layer: LayerPlan) -> int:
        return sum(
            store_bytes(shape, layer.quantization[slot], "float32")
            for slot, shape in layer.slot_shapes().items()
        )

    def kernel(self, shape: Shape, spec: QuantSpec | None) -> str:
        width = "floats" if spec is None else f"{4 if spec.bits == 3 else spec.bits} bits"
        return f"{shape[0]}x{shape[1]} {width}"

    def decode_seconds(self, matrices: Sequence[tuple[Shape, QuantSpec | None]]) -> list[float]:
        self.calls.append(list(matrices))
        return [expected(shape, spec) * 1e-9 for shape, spec in matrices]


def count_of(exporter: object) -> Count:
    return Count("float32", cast(Exporter, exporter))
