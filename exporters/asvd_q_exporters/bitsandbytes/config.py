"""The quantization settings that a bitsandbytes checkpoint carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from asvd_q.errors import ExportError
from asvd_q.models.skeleton import build_skeleton
from asvd_q_exporters._checkpoint import MODULES
from asvd_q_exporters.bitsandbytes.layout import METHOD

if TYPE_CHECKING:
    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, Plan

__all__ = ["quantization_config"]


def quantization_config(plan: Plan, source: SourceModel, float_type: FloatType) -> dict[str, Any]:
    """`quantization_config` in `config.json`, key for key as transformers writes it.

    `bnb_4bit_use_double_quant` tells what some matrix has; loaders go by each one's own tensors.

    Args:
        float_type: what loaders compute in.

    Raises:
        ExportError: transformers would take a quantized matrix for a float one.
    """
    double = any(
        spec is not None and spec.double_quant
        for layer in plan
        for spec in layer.quantization.values()
    )
    return {
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "bnb_4bit_compute_dtype": float_type,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": METHOD,
        "bnb_4bit_use_double_quant": double,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": _float_modules(plan, source),
        "llm_int8_threshold": 6.0,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "quant_method": "bitsandbytes",
    }


def _float_modules(plan: Plan, source: SourceModel) -> list[str]:
    """Names of all linear layers that are not quantized, the head among them.

    Each is listed as in the causal language model and, for loaders of the model without its
    head, as in there.
    """
    model = build_skeleton(source).model
    linear = {
        name: None
        for name, module in model.named_modules()
        if isinstance(module, Conv1D) or type(module) is nn.Linear
    }
    quantized = []
    for layer in plan:
        linear.pop(layer.name, None)
        for slot, spec in layer.quantization.items():
            name = layer.name + MODULES[slot]
            if spec is None:
                linear[name] = None
            else:
                quantized.append(name)
    prefix = f"{model.base_model_prefix}."
    short = (name.removeprefix(prefix) for name in linear if name.startswith(prefix))
    listed = list(dict.fromkeys([*linear, *short]))
    # Loaders compare beginnings and ends of names, and add these patterns to the list.
    kept = [*listed, *(getattr(model, "_keep_in_fp32_modules", None) or ())]
    for name in quantized:
        if not should_convert_module(name, kept):
            raise ExportError(
                f"{name}: transformers would keep it in floating point, by its name; do not "
                "quantize it, or export it with onnx"
            )
    return listed
