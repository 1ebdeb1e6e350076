"""A store into a GPTQ-format checkpoint, and how many bytes that takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from asvd_q.artefact import ArtefactBytes
from asvd_q.errors import ExportError
from asvd_q.quantization import TORCH_TYPES, QuantizedWeight
from asvd_q_exporters._checkpoint import (
    MatrixFormat,
    checkpoint_bytes,
    json_bytes,
    write_checkpoint,
    write_json,
)
from asvd_q_exporters.gptq.config import is_first_version, quantization_config
from asvd_q_exporters.gptq.initialisation import fails_without_weights
from asvd_q_exporters.gptq.layout import packed_layout
from asvd_q_exporters.gptq.pack import pack_weight
from asvd_q_exporters.gptq.settings import settings_of

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.artefact import Refusal
    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, Plan, QuantSpec
    from asvd_q.quantization import StoredWeight
    from asvd_q.store import Store

__all__ = ["artefact_bytes", "write_artefact"]

_SETTINGS = "quantize_config.json"


def write_artefact(
    store: Store,
    folder: Path,
    refusals: list[Refusal],
    float_type: FloatType | None,
    *,
    for_transformers: bool = True,
) -> None:
    """Write the checkpoint.

    Args:
        for_transformers: transformers is to load it, if need be with a class of ours.

    Raises:
        ExportError: there are refusals; the first one is the message.
    """
    if refusals:
        raise ExportError(str(refusals[0]))
    plan = store.finished_plan
    chosen = float_type or store.float_type

    def settings() -> dict[str, Any]:
        config = quantization_config(plan, store.source)
        write_json(folder / _SETTINGS, config)
        return {"quantization_config": config}

    write_checkpoint(
        store,
        folder,
        _format(plan, store.source, TORCH_TYPES[chosen], for_transformers),
        float_type=chosen,
        extra_config=settings,
    )


def artefact_bytes(
    plan: Plan, source: SourceModel, float_type: FloatType | None, *, for_transformers: bool = True
) -> ArtefactBytes:
    """See `asvd_q.artefact.SizedExporter`."""
    chosen = float_type or plan.float_type
    config = quantization_config(plan, source)
    found = checkpoint_bytes(
        plan,
        source,
        _format(plan, source, TORCH_TYPES[chosen], for_transformers),
        float_type=chosen,
        extra_config={"quantization_config": config},
    )
    return ArtefactBytes(found.weights, {**found.others, _SETTINGS: json_bytes(config)})


def _format(
    plan: Plan, source: SourceModel, dtype: torch.dtype, for_transformers: bool
) -> MatrixFormat:
    settings = settings_of(plan)
    zero_offset = int(is_first_version(settings.values()))

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
        return pack_weight(weight, zero_offset=zero_offset)

    own_class = for_transformers and fails_without_weights(source, settings)
    return MatrixFormat(specs, tensors, own_class=own_class)
