"""A store into a checkpoint of floating-point matrices, and how many bytes that takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from asvd_q.errors import ExportError
from asvd_q.quantization import TORCH_TYPES
from asvd_q_exporters._checkpoint import MatrixFormat, checkpoint_bytes, write_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.artefact import ArtefactBytes, Refusal
    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, Plan, QuantSpec
    from asvd_q.quantization import StoredWeight
    from asvd_q.store import Store

__all__ = ["artefact_bytes", "float_format", "write_artefact"]


def float_format(dtype: torch.dtype) -> MatrixFormat:
    """A matrix (out, in) as one tensor of that shape, as `nn.Linear` has it.

    Codes become the floats that they stand for.
    """

    def specs(
        shape: tuple[int, int], spec: QuantSpec | None
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"weight": (dtype, shape)}

    def tensors(weight: StoredWeight) -> dict[str, Tensor]:
        return {"weight": weight.dequantize(dtype)}

    return MatrixFormat(specs, tensors, as_source=True)


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
    write_checkpoint(store, folder, float_format(TORCH_TYPES[chosen]), float_type=chosen)


def artefact_bytes(plan: Plan, source: SourceModel, float_type: FloatType | None) -> ArtefactBytes:
    """See `asvd_q.artefact.SizedExporter`."""
    chosen = float_type or plan.float_type
    return checkpoint_bytes(plan, source, float_format(TORCH_TYPES[chosen]), float_type=chosen)
