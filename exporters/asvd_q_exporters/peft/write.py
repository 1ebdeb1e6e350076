"""A store into a GPTQ-format checkpoint and the adapter that corrects it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from asvd_q.errors import ExportError
from asvd_q.plan import Slot
from asvd_q.quantization import TORCH_TYPES
from asvd_q.records import LayerRecord
from asvd_q.store import Store, StoredLayer
from asvd_q_exporters._checkpoint import write_json
from asvd_q_exporters._safetensors import Group, TensorSpec, write_safetensors
from asvd_q_exporters.gptq.write import write_artefact as write_base
from asvd_q_exporters.peft.base import codes_alone
from asvd_q_exporters.peft.config import adapter_config

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from asvd_q.artefact import Refusal
    from asvd_q.plan import FloatType

__all__ = ["write_artefact"]

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


def write_artefact(
    store: Store, folder: Path, refusals: list[Refusal], float_type: FloatType | None
) -> None:
    """Write both folders, with one layer in memory at a time.

    Raises:
        ExportError: there are refusals; the first one is the message.
    """
    if refusals:
        raise ExportError(str(refusals[0]))
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    write_base(_CodesAlone(store), base, [], float_type)
    adapter.mkdir()
    dtype = TORCH_TYPES[float_type or store.float_type]
    corrected = [record for record in store.records() if record.form == "correction"]
    groups = [_group(store, record, dtype) for record in corrected]
    write_safetensors(adapter / "adapter_model.safetensors", groups)
    ranks = {record.name: record.rank for record in corrected if record.rank is not None}
    write_json(adapter / "adapter_config.json", adapter_config(ranks, "../base"))


def _group(store: Store, record: LayerRecord, dtype: torch.dtype) -> Group:
    shapes = record.slot_shapes()
    names = {
        slot: f"base_model.model.{record.name}.{matrix}.weight"
        for slot, matrix in _MATRICES.items()
    }
    specs = tuple(TensorSpec(name, dtype, shapes[slot]) for slot, name in names.items())
    return Group(specs, partial(_tensors, store, record.name, names, dtype))


def _tensors(
    store: Store, layer: str, names: Mapping[Slot, str], dtype: torch.dtype
) -> dict[str, Tensor]:
    weights = store.layer(layer).weights
    found = {name: weights[slot].dequantize(dtype) for slot, name in names.items()}
    if not all(tensor.isfinite().all() for tensor in found.values()):
        raise ExportError(
            f"{layer}: its correction holds values that {str(dtype).removeprefix('torch.')} "
            "cannot; export with dtype float32"
        )
    return found
