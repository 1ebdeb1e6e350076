"""How a compressed-tensors checkpoint holds a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from asvd_q.quantization import QuantizedWeight
from asvd_q_exporters._checkpoint import CheckpointFormat
from asvd_q_exporters.compressed_tensors.config import quantization_config
from asvd_q_exporters.compressed_tensors.layout import packed_layout
from asvd_q_exporters.compressed_tensors.pack import pack_weight

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.models import SourceModel
    from asvd_q.plan import Plan, QuantSpec
    from asvd_q.quantization import StoredWeight

__all__ = ["packed_format"]


def packed_format(plan: Plan, source: SourceModel) -> CheckpointFormat:
    """How the format holds a plan of a model that it does not refuse."""

    def coded(
        shape: tuple[int, int], spec: QuantSpec
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        layout = packed_layout(shape, spec)
        return {
            "weight_packed": (torch.int32, layout.weight_packed),
            "weight_scale": (torch.float16, layout.weight_scale),
            "weight_shape": (torch.int64, layout.weight_shape),
        }

    def pack(weight: StoredWeight) -> dict[str, Tensor]:
        assert isinstance(weight, QuantizedWeight)
        return pack_weight(weight)

    config = {"quantization_config": quantization_config(plan, source)}
    return CheckpointFormat(coded, pack, config)
