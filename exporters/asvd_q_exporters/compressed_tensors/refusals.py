"""What a compressed-tensors checkpoint cannot hold, said before anything is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asvd_q.artefact import Refusal
from asvd_q.methods import INTEGER_METHODS
from asvd_q_exporters._options import coded_embeddings, nothing_quantized
from asvd_q_exporters.compressed_tensors.layout import NARROWEST, group_width

if TYPE_CHECKING:
    from asvd_q.plan import LayerPlan, Plan, QuantSpec

__all__ = ["refusals"]


def refusals(plan: Plan) -> list[Refusal]:
    """All layers that the format cannot hold; empty when it can hold the plan."""
    refused = coded_embeddings(plan, "compressed-tensors")
    refused += [
        Refusal(layer.name, *found)
        for layer in plan
        if layer.role == "linear"
        for slot, shape in layer.slot_shapes().items()
        if (spec := layer.quantization[slot]) is not None
        and (found := _of_matrix(layer, shape, spec)) is not None
    ]
    return refused or nothing_quantized(plan, "compressed-tensors")


def _of_matrix(layer: LayerPlan, shape: tuple[int, int], spec: QuantSpec) -> tuple[str, str] | None:
    """Why a quantized matrix has no place, and what works instead."""
    columns = shape[1]
    if spec.method not in INTEGER_METHODS:
        return (
            f"the compressed-tensors format cannot hold what {spec.method} makes",
            "export it with bitsandbytes or onnx, or quantize it with "
            f"{' or '.join(INTEGER_METHODS)}",
        )
    if not spec.symmetric:
        return (
            "transformers cannot load the packed zero points of asymmetric codes in this format",
            "use symmetric: true, or export it with onnx or gptq",
        )
    if spec.permutes(columns):
        return (
            "compressed-tensors does not load groups of reordered columns",
            "use static_groups: true, or export it with gptq",
        )
    if layer.transposed and layer.form == "dense":
        return (
            "is a Conv1D, and compressed-tensors quantizes torch's Linear alone",
            "export it with onnx or gptq",
        )
    if layer.subclass is not None and layer.form == "dense":
        return (
            f"is a {layer.subclass}, and compressed-tensors fails to load codes into classes "
            "derived from torch's Linear",
            "decompose it, or export it with onnx",
        )
    narrow = group_width(columns, spec)
    if narrow < min(NARROWEST, columns):
        return (
            f"groups of {spec.group_size} leave a rest of its {columns} columns, so that they "
            f"would have to be cut into pieces of {narrow}",
            f"use group_size {_nearest(columns, spec.group_size)}",
        )
    return None


def _nearest(columns: int, size: int) -> int:
    """The group size closest to `size` that leaves no rest; -1 where none is allowed."""
    fitting = [width for width in range(NARROWEST, 257) if columns % width == 0]
    return min(fitting, key=lambda width: abs(width - size), default=-1)
