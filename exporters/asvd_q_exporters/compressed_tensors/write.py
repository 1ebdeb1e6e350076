"""A store into a compressed-tensors checkpoint, and how many bytes that takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from asvd_q.errors import ExportError
from asvd_q.quantization import TORCH_TYPES, QuantizedWeight
from asvd_q_exporters._checkpoint import MatrixFormat, checkpoint_bytes, write_checkpoint
from asvd_q_exporters.compressed_tensors.config import quantization_config
from asvd_q_exporters.compressed_tensors.layout import packed_layout
from asvd_q_exporters.compressed_tensors.pack import pack_weight

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.artefact import ArtefactBytes, Refusal
    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, Plan, QuantSpec
    from asvd_q.quantization import StoredWeight
    from asvd_q.store import Store

__all__ = ["artefact_bytes", "write_artefact"]


def write_artefact(
    store: Store, folder: Path, refusals: list[Refusal], float_type: FloatType | None
) -> None:
    """Write the checkpoint.

    Raises:
        ExportError: there are refusals; the first one is the message.
    """
    if refusals:
        raise ExportError(str(refusals[0]))
    chosen = float_type or store.float_type
    config = quantization_config(store.finished_plan, store.source)
    write_checkpoint(
        store,
        folder,
        _format(TORCH_TYPES[chosen]),
        float_type=chosen,
        extra_config=lambda: {"quantization_config": config},
    )


def artefact_bytes(plan: Plan, source: SourceModel, float_type: FloatType | None) -> ArtefactBytes:
    """See `asvd_q.artefact.SizedExporter`."""
    chosen = float_type or plan.float_type
    return checkpoint_bytes(
        plan,
        source,
        _format(TORCH_TYPES[chosen]),
        float_type=chosen,
        extra_config={"quantization_config": quantization_config(plan, source)},
    )


def _format(dtype: torch.dtype) -> MatrixFormat:
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

    return MatrixFormat(specs, tensors)
