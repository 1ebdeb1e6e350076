"""How a GPTQ-format checkpoint holds a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from asvd_q.quantization import QuantizedWeight
from asvd_q_exporters._checkpoint import CheckpointFormat
from asvd_q_exporters.gptq.config import is_first_version, quantization_config
from asvd_q_exporters.gptq.initialisation import fails_without_weights
from asvd_q_exporters.gptq.layout import packed_layout
from asvd_q_exporters.gptq.pack import pack_weight
from asvd_q_exporters.gptq.settings import settings_of

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.models import SourceModel
    from asvd_q.plan import Plan, QuantSpec
    from asvd_q.quantization import StoredWeight

__all__ = ["gptq_format"]

_SETTINGS = "quantize_config.json"


def gptq_format(
    plan: Plan, source: SourceModel, *, for_transformers: bool = True
) -> CheckpointFormat:
    """How the format holds a plan of a model that it does not refuse.

    Args:
        for_transformers: transformers is to load it, if need be with a class of ours.
    """
    settings = settings_of(plan)
    zero_offset = int(is_first_version(settings.values()))

    def coded(
        shape: tuple[int, int], spec: QuantSpec
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        layout = packed_layout(shape, spec)
        return {
            "qweight": (torch.int32, layout.qweight),
            "qzeros": (torch.int32, layout.qzeros),
            "scales": (torch.float16, layout.scales),
            "g_idx": (torch.int32, layout.g_idx),
        }

    def pack(weight: StoredWeight) -> dict[str, Tensor]:
        assert isinstance(weight, QuantizedWeight)
        return pack_weight(weight, zero_offset=zero_offset)

    config = quantization_config(plan, source)
    return CheckpointFormat(
        coded,
        pack,
        config={"quantization_config": config},
        files={_SETTINGS: config},
        own_class=for_transformers and fails_without_weights(source, settings),
    )
