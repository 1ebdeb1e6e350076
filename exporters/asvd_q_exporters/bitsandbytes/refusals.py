"""What a bitsandbytes checkpoint cannot hold, said before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from asvd_q.artefact import Refusal
from asvd_q.spec import NF4_BLOCKS
from asvd_q_exporters._options import coded_embeddings, nothing_quantized
from asvd_q_exporters.bitsandbytes.layout import METHOD, ROWS, kernels_take

if TYPE_CHECKING:
    from asvd_q.plan import LayerPlan, Plan, QuantSpec

__all__ = ["refusals"]


def refusals(plan: Plan) -> list[Refusal]:
    """All layers that the format cannot hold; empty when it can hold the plan."""
    found = coded_embeddings(plan, "bitsandbytes")
    found += [refusal for layer in plan if layer.role == "linear" for refusal in _of_layer(layer)]
    return found or nothing_quantized(plan, "bitsandbytes")


def _of_layer(layer: LayerPlan) -> Iterator[Refusal]:
    if layer.form == "correction":
        yield Refusal(
            layer.name,
            "transformers reads 4-bit codes into whole linear layers alone, and a corrected one "
            "is more than that",
            "export it with onnx",
        )
        return
    for slot, shape in layer.slot_shapes().items():
        spec = layer.quantization[slot]
        if spec is None:
            continue
        if layer.subclass is not None and layer.form == "dense":
            yield Refusal(
                layer.name,
                f"is a {layer.subclass}, and transformers puts 4-bit codes into layers of torch's "
                "own Linear alone",
                "decompose it, or export it with onnx",
            )
        elif spec.method != METHOD:
            yield Refusal(
                layer.name,
                f"bitsandbytes has no place for the {spec.bits}-bit codes that {spec.method} makes",
                f"export it with gptq or onnx, or quantize it with {METHOD}",
            )
        elif not kernels_take(shape, spec):
            yield Refusal(
                layer.name,
                f"matrix {slot} of {shape[0]} × {shape[1]} in blocks of {spec.group_size}: "
                f"bitsandbytes' kernels for CPUs want multiples of {ROWS} output channels and of "
                "the block for input channels, and fail or misread others",
                _instead(layer, shape, spec),
            )


def _instead(layer: LayerPlan, shape: tuple[int, int], spec: QuantSpec) -> str:
    """Another rank, or the widest blocks below the present ones that fit."""
    block = spec.group_size
    if layer.rank is not None and layer.rank % block:
        return f"use rank_multiple {block}" + (
            f", or {ROWS} with group_size {ROWS}" if block > ROWS else ""
        )
    for size in reversed(NF4_BLOCKS):
        smaller = spec.model_copy(update={"group_size": size})
        if size < block and kernels_take(shape, smaller):
            return f"use group_size {size}"
    return "leave it in floating point"
