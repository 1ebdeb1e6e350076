"""A store into a GPTQ-format checkpoint and the adapter that corrects it, and their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from asvd_q.artefact import ArtefactBytes
from asvd_q.errors import ExportError
from asvd_q.plan import Plan, Slot
from asvd_q.quantization import TORCH_TYPES
from asvd_q.records import LayerRecord
from asvd_q.store import Store, StoredLayer
from asvd_q_exporters._checkpoint import (
    checkpoint_bytes,
    json_bytes,
    write_checkpoint,
    write_json,
)
from asvd_q_exporters._safetensors import (
    Group,
    TensorSpec,
    safetensors_bytes,
    write_safetensors,
)
from asvd_q_exporters.gptq.format import gptq_format
from asvd_q_exporters.peft.base import codes_alone
from asvd_q_exporters.peft.config import adapter_config

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType

__all__ = ["artefact_bytes", "write_artefact"]

_BASE, _ADAPTER = "base", "adapter"
_WEIGHTS, _SETTINGS = "adapter_model.safetensors", "adapter_config.json"

_MATRICES: Mapping[Slot, str] = {"B": "lora_A", "A": "lora_B"}
"""PEFT's names, which are the other way round."""


class _CodesAlone(Store):
    """A finished store without its corrections."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.folder, store.header, store.source)

    def records(self) -> list[LayerRecord]:
        return [codes_alone(record) for record in super().records()]

    def layer(self, name: str) -> StoredLayer:
        layer = super().layer(name)
        if layer.record.form != "correction":
            return layer
        return StoredLayer(codes_alone(layer.record), {"weight": layer.weights["weight"]})


def write_artefact(store: Store, folder: Path, float_type: FloatType) -> None:
    """Write both folders, with one layer in memory at a time.

    Raises:
        ExportError: naming a layer whose correction `float_type` cannot hold.
    """
    base, adapter = folder / _BASE, folder / _ADAPTER
    base.mkdir()
    alone = _CodesAlone(store)
    codes = gptq_format(alone.finished_plan, alone.source)
    write_checkpoint(alone, base, codes, float_type=float_type)
    adapter.mkdir()
    dtype = TORCH_TYPES[float_type]
    plan = store.finished_plan
    groups = [
        Group(specs, partial(_tensors, store, name, dtype))
        for name, specs in _adapter_specs(plan, dtype).items()
    ]
    write_safetensors(adapter / _WEIGHTS, groups)
    write_json(adapter / _SETTINGS, adapter_config(plan.correction_ranks, f"../{_BASE}"))


def artefact_bytes(plan: Plan, source: SourceModel, float_type: FloatType) -> ArtefactBytes:
    """See `asvd_q.artefact.SizedExporter`."""
    alone = plan.with_layers({layer.name: codes_alone(layer) for layer in plan})
    codes = gptq_format(alone, source)
    base = checkpoint_bytes(alone, source, codes, float_type=float_type)
    specs = _adapter_specs(plan, TORCH_TYPES[float_type])
    weights = safetensors_bytes(spec for layer in specs.values() for spec in layer)
    settings = json_bytes(adapter_config(plan.correction_ranks, f"../{_BASE}"))
    return ArtefactBytes(
        {
            **{f"{_BASE}/{file}": size for file, size in base.weights.items()},
            f"{_ADAPTER}/{_WEIGHTS}": weights,
        },
        {
            **{f"{_BASE}/{file}": size for file, size in base.others.items()},
            f"{_ADAPTER}/{_SETTINGS}": settings,
        },
    )


def _adapter_specs(plan: Plan, dtype: torch.dtype) -> dict[str, tuple[TensorSpec, ...]]:
    """The adapter's tensors of every corrected layer."""
    return {
        layer.name: tuple(
            TensorSpec(_tensor_name(layer.name, slot), dtype, layer.slot_shapes()[slot])
            for slot in _MATRICES
        )
        for layer in plan
        if layer.form == "correction"
    }


def _tensor_name(layer: str, slot: Slot) -> str:
    return f"base_model.model.{layer}.{_MATRICES[slot]}.weight"


def _tensors(store: Store, layer: str, dtype: torch.dtype) -> dict[str, Tensor]:
    weights = store.layer(layer).weights
    found = {_tensor_name(layer, slot): weights[slot].dequantize(dtype) for slot in _MATRICES}
    if not all(tensor.isfinite().all() for tensor in found.values()):
        raise ExportError(
            f"{layer}: its correction holds values that {str(dtype).removeprefix('torch.')} "
            "cannot; export with dtype float32"
        )
    return found
