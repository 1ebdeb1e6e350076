"""How a bitsandbytes checkpoint holds a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from asvd_q.quantization.nf4 import Nf4Weight
from asvd_q_exporters._checkpoint import CheckpointFormat
from asvd_q_exporters.bitsandbytes.config import quantization_config
from asvd_q_exporters.bitsandbytes.layout import tensor_shapes
from asvd_q_exporters.bitsandbytes.pack import pack_weight

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, Plan, QuantSpec
    from asvd_q.quantization import StoredWeight

__all__ = ["nf4_format"]


def nf4_format(plan: Plan, source: SourceModel, float_type: FloatType) -> CheckpointFormat:
    """How the format holds a plan of a model that it does not refuse.

    Args:
        float_type: of everything that is not quantized.

    Raises:
        ExportError: transformers would take a quantized matrix for a float one.
    """

    def coded(
        shape: tuple[int, int], spec: QuantSpec
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {
            name: (torch.uint8 if kind == "uint8" else torch.float32, dimensions)
            for name, (kind, dimensions) in tensor_shapes(shape, spec, float_type).items()
        }

    def pack(weight: StoredWeight) -> dict[str, Tensor]:
        assert isinstance(weight, Nf4Weight)
        return pack_weight(weight, float_type)

    config = {"quantization_config": quantization_config(plan, source, float_type)}
    return CheckpointFormat(coded, pack, config)
