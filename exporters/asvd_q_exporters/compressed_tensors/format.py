"""How a compressed-tensors checkpoint holds a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from asvd_q.quantization import TORCH_TYPES, QuantizedWeight
from asvd_q_exporters._checkpoint import CheckpointFormat
from asvd_q_exporters.compressed_tensors.config import quantization_config
from asvd_q_exporters.compressed_tensors.layout import packed_layout
from asvd_q_exporters.compressed_tensors.pack import pack_weight

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, Plan, QuantSpec
    from asvd_q.quantization import StoredWeight

__all__ = ["packed_format"]


def packed_format(plan: Plan, source: SourceModel, float_type: FloatType) -> CheckpointFormat:
    """How the format holds a plan of a model that it does not refuse.

    Args:
        float_type: of everything that is not quantized.
    """
    dtype = TORCH_TYPES[float_type]

    def specs(
        shape: tuple[int, int], spec: QuantSpec | None
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        if spec is None:
            return {"weight": (dtype, shape)}
        layout = packed_layout(shape, spec)
        return {
            "weight_packed": (torch.int32, layout.weight_packed),
            "weight_scale": (torch.float16, layout.weight_scale),
            "weight_shape": (torch.int64, layout.weight_shape),
        }

    def tensors(weight: StoredWeight) -> dict[str, Tensor]:
        if isinstance(weight, QuantizedWeight):
            return pack_weight(weight)
        return {"weight": weight.dequantize(dtype)}

    config = {"quantization_config": quantization_config(plan, source)}
    return CheckpointFormat(specs, tensors, config)
