"""What a GPTQ-format base with a PEFT adapter cannot hold, said before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from asvd_q.artefact import WHOLE_MODEL, Refusal
from asvd_q_exporters._options import coded_embeddings
from asvd_q_exporters.gptq.refusals import refusals as base_refusals
from asvd_q_exporters.peft.base import codes_alone

if TYPE_CHECKING:
    from asvd_q.plan import LayerPlan, Plan

__all__ = ["refusals"]


def refusals(plan: Plan) -> list[Refusal]:
    """All layers that the format cannot hold; empty when it can hold the plan."""
    found = coded_embeddings(plan, "GPTQ-format")
    found += [refusal for layer in plan for refusal in _of_layer(layer)]
    if found:
        return found
    if not any(layer.form == "correction" for layer in plan):
        return [
            Refusal(
                WHOLE_MODEL,
                "no layer has a correction, and an adapter holds at least one",
                "export it with gptq",
            )
        ]
    base = tuple(codes_alone(layer) for layer in plan)
    return base_refusals(
        plan.model_copy(update={"layers": base}),
        mixed=False,
        instead="use one setting for every layer, or export it with onnx",
        of_classes="export it with compressed-tensors or onnx",
    )


def _of_layer(layer: LayerPlan) -> Iterator[Refusal]:
    if layer.form == "factors":
        yield Refusal(
            layer.name,
            "its factors take the place of its weight, and a PEFT adapter lies beside one",
            "export it with gptq or onnx",
        )
    elif layer.form == "correction":
        for slot, spec in layer.quantization.items():
            if slot != "weight" and spec is not None:
                yield Refusal(
                    layer.name,
                    f"PEFT adapters are in floating point, and its {slot} is {spec.bits}-bit "
                    f"codes of {spec.method}",
                    "leave A and B in floating point, or export it with compressed-tensors or onnx",
                )
