"""A store into a GPTQ-format checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from asvd_q.errors import ExportError
from asvd_q.quantization import TORCH_TYPES, QuantizedWeight
from asvd_q_exporters._checkpoint import MatrixFormat, write_checkpoint, write_json
from asvd_q_exporters.gptq.config import quantization_config
from asvd_q_exporters.gptq.layout import packed_layout
from asvd_q_exporters.gptq.pack import pack_weight
from asvd_q_exporters.gptq.refusals import common_spec

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.artefact import Refusal
    from asvd_q.plan import FloatType, QuantSpec
    from asvd_q.quantization import StoredWeight
    from asvd_q.store import Store

__all__ = ["write_artefact"]


def write_artefact(
    store: Store, folder: Path, refusals: list[Refusal], float_type: FloatType | None
) -> None:
    """Write the checkpoint.

    Raises:
        ExportError: there are refusals; the first one is the message.
    """
    common = common_spec(store.finished_plan)
    if refusals or common is None:
        raise ExportError(str(refusals[0]))
    chosen = float_type or store.float_type
    dtype = TORCH_TYPES[chosen]
    reordered: list[bool] = []

    def specs(
        shape: tuple[int, int], spec: QuantSpec | None
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        if spec is None:
            return {"weight": (dtype, shape)}
        layout = packed_layout(shape, spec)
        return {
            "qweight": (torch.int32, layout.qweight),
            "qzeros": (torch.int32, layout.qzeros),
            "scales": (torch.float16, layout.scales),
            "g_idx": (torch.int32, layout.g_idx),
        }

    def tensors(weight: StoredWeight) -> dict[str, Tensor]:
        if not isinstance(weight, QuantizedWeight):
            return {"weight": weight.dequantize(dtype)}
        reordered.append(weight.permutation is not None)
        return pack_weight(weight, zero_offset=int(common.symmetric))

    def extra_config() -> dict[str, object]:
        config = quantization_config(store, act_order=any(reordered))
        write_json(folder / "quantize_config.json", config)
        return {"quantization_config": config}

    write_checkpoint(
        store,
        folder,
        MatrixFormat(specs, tensors),
        float_type=chosen,
        extra_config=extra_config,
    )
