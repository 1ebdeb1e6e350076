"""A store into a bitsandbytes checkpoint, and how many bytes that takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from asvd_q.errors import ExportError
from asvd_q.quantization import TORCH_TYPES
from asvd_q.quantization.nf4 import Nf4Weight
from asvd_q_exporters._checkpoint import MatrixFormat, checkpoint_bytes, write_checkpoint
from asvd_q_exporters.bitsandbytes.config import quantization_config
from asvd_q_exporters.bitsandbytes.layout import tensor_shapes
from asvd_q_exporters.bitsandbytes.pack import pack_weight

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
        ExportError: there are refusals, of which the first is the message; or transformers would
            take a quantized matrix for a float one.
    """
    if refusals:
        raise ExportError(str(refusals[0]))
    chosen = float_type or store.float_type
    config = quantization_config(store.finished_plan, store.source, chosen)
    write_checkpoint(
        store,
        folder,
        _format(chosen),
        float_type=chosen,
        extra_config=lambda: {"quantization_config": config},
    )


def artefact_bytes(plan: Plan, source: SourceModel, float_type: FloatType | None) -> ArtefactBytes:
    """See `asvd_q.artefact.SizedExporter`."""
    chosen = float_type or plan.float_type
    return checkpoint_bytes(
        plan,
        source,
        _format(chosen),
        float_type=chosen,
        extra_config={"quantization_config": quantization_config(plan, source, chosen)},
    )


def _format(float_type: FloatType) -> MatrixFormat:
    dtype = TORCH_TYPES[float_type]

    def specs(
        shape: tuple[int, int], spec: QuantSpec | None
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        if spec is None:
            return {"weight": (dtype, shape)}
        return {
            name: (torch.uint8 if kind == "uint8" else torch.float32, dimensions)
            for name, (kind, dimensions) in tensor_shapes(shape, spec, float_type).items()
        }

    def tensors(weight: StoredWeight) -> dict[str, Tensor]:
        if isinstance(weight, Nf4Weight):
            return pack_weight(weight, float_type)
        return {"weight": weight.dequantize(dtype)}

    return MatrixFormat(specs, tensors)
