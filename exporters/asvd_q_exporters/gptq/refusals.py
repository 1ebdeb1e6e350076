"""What a GPTQ-format checkpoint cannot hold, said before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from asvd_q.artefact import Refusal
from asvd_q_exporters.gptq.layout import BITS, GROUP_SIZES, METHODS, MULTIPLE

if TYPE_CHECKING:
    from asvd_q.plan import LayerPlan, Plan, QuantSpec

__all__ = ["common_spec", "refusals"]


def refusals(plan: Plan) -> list[Refusal]:
    """All layers that the format cannot hold; empty when it can hold the plan."""
    if common_spec(plan) is None:
        return [
            Refusal(
                plan.layers[0].name if plan.layers else "the model",
                "no layer is quantized, and a GPTQ-format checkpoint needs at least one",
                "export it with transformers",
            )
        ]
    found = [refusal for layer in plan for refusal in _of_layer(layer)]
    return found or list(_of_differences(plan))


def common_spec(plan: Plan) -> QuantSpec | None:
    """The first quantized matrix's settings, which the format makes those of all."""
    return next((spec for layer in plan for spec in layer.quantization.values() if spec), None)


def _of_layer(layer: LayerPlan) -> Iterator[Refusal]:
    if layer.form == "correction":
        yield Refusal(
            layer.name,
            "the GPTQ format has no place for a correction beside the codes",
            "export it with peft or onnx",
        )
        return
    for slot, shape in layer.slot_shapes().items():
        spec = layer.quantization[slot]
        if spec is None:
            continue
        if spec.method not in METHODS:
            yield Refusal(
                layer.name,
                f"the GPTQ format cannot hold what {spec.method} makes",
                f"export it with onnx, or quantize it with {' or '.join(METHODS)}",
            )
        elif spec.bits not in BITS:
            nearest = min(BITS, key=lambda bits: (abs(bits - spec.bits), -bits))
            yield Refusal(
                layer.name,
                f"transformers loads the GPTQ format with 2, 3, 4 or 8 bits, not {spec.bits}",
                f"use bits {nearest}",
            )
        elif spec.group_size not in GROUP_SIZES:
            nearest = min(GROUP_SIZES[1:], key=lambda size: abs(size - spec.group_size))
            yield Refusal(
                layer.name,
                f"gptqmodel has no kernel for groups of {spec.group_size} columns",
                f"use group_size {nearest} ({', '.join(map(str, GROUP_SIZES))} work)",
            )
        elif layer.block is None:
            yield Refusal(
                layer.name,
                "transformers quantizes layers of the transformer blocks alone",
                "leave it in floating point",
            )
        elif shape[0] % MULTIPLE or shape[1] % MULTIPLE:
            yield Refusal(
                layer.name,
                f"matrix {slot} of {shape[0]} × {shape[1]} has a side that is no multiple of "
                f"{MULTIPLE}, so its codes do not fill whole 32-bit words",
                f"use rank_multiple {MULTIPLE}"
                if layer.rank is not None and layer.rank % MULTIPLE
                else "leave it in floating point",
            )


def _of_differences(plan: Plan) -> Iterator[Refusal]:
    """The first layer that is not quantized like the ones before it."""
    common = common_spec(plan)
    assert common is not None
    words = {"bits": "bits", "group_size": "group size", "symmetric": "symmetry"}
    for layer in plan:
        for spec in filter(None, layer.quantization.values()):
            for field, word in words.items():
                here, first = getattr(spec, field), getattr(common, field)
                if here != first:
                    yield Refusal(
                        layer.name,
                        f"its {word} ({here}) differs from that of the layers before it "
                        f"({first}), and transformers applies one to all of a checkpoint",
                        f"use {field} {str(first).lower()} for every layer, or export it with onnx",
                    )
                    return
