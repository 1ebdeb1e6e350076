"""What a GPTQ-format checkpoint cannot hold, said before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from asvd_q.artefact import Refusal
from asvd_q.methods import INTEGER_METHODS
from asvd_q_exporters._options import coded_embeddings, nothing_quantized
from asvd_q_exporters.gptq.layout import BITS, GROUP_SIZES, MULTIPLE
from asvd_q_exporters.gptq.names import compact
from asvd_q_exporters.gptq.settings import Setting, common, settings_of

if TYPE_CHECKING:
    from asvd_q.plan import LayerPlan, Plan

__all__ = ["refusals"]


def refusals(plan: Plan, *, mixed: bool, instead: str, of_classes: str) -> list[Refusal]:
    """All layers that the format cannot hold; empty when it can hold the plan.

    Args:
        mixed: whether the loader takes matrices that are not quantized alike, and layers of
            classes derived from torch's.
        instead: what to do where it does not, and the plan has the former.
        of_classes: the same of the latter.
    """
    settings = settings_of(plan)
    default = common(settings)
    if default is None:
        return nothing_quantized(plan, "GPTQ-format")
    found = coded_embeddings(plan, "GPTQ-format")
    found += [refusal for layer in plan if layer.role == "linear" for refusal in _of_layer(layer)]
    if not mixed:
        found += _of_classes(plan, of_classes)
    if found or mixed:
        return found
    return list(_of_differences(settings, default, instead))


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
        if spec.method not in INTEGER_METHODS:
            yield Refusal(
                layer.name,
                f"the GPTQ format cannot hold what {spec.method} makes",
                "export it with bitsandbytes or onnx, or quantize it with "
                f"{' or '.join(INTEGER_METHODS)}",
            )
        elif spec.bits not in BITS:
            nearest = min(BITS, key=lambda bits: (abs(bits - spec.bits), -bits))
            yield Refusal(
                layer.name,
                f"the GPTQ format has codes of 2, 3, 4 or 8 bits, not {spec.bits}",
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


def _of_classes(plan: Plan, instead: str) -> Iterator[Refusal]:
    """Dense layers that optimum, which replaces modules for transformers, passes over."""
    for layer in plan:
        if layer.subclass is not None and layer.form == "dense" and layer.quantization["weight"]:
            yield Refusal(
                layer.name,
                f"is a {layer.subclass}, and optimum replaces layers of torch's own Linear alone, "
                "so that transformers would leave it without weights",
                instead,
            )


def _of_differences(
    settings: dict[str, Setting], default: Setting, instead: str
) -> Iterator[Refusal]:
    """One refusal for all matrices that are not quantized like most."""
    others: dict[Setting, list[str]] = {}
    for module, setting in settings.items():
        if setting != default:
            others.setdefault(setting, []).append(module)
    if others:
        yield Refusal(
            ", ".join(f"{compact(modules)} ({setting})" for setting, modules in others.items()),
            f"not quantized like most layers ({default}), and transformers applies one setting "
            "to all of a checkpoint",
            instead,
        )
