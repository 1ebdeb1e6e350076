"""What every Hugging Face checkpoint is made of: weight files, configuration, companions.

The formats differ in one function: the tensors that hold one matrix of a layer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asvd_q.errors import ExportError
from asvd_q.files import write_text
from asvd_q.models import modeling_asvd_q as modeling
from asvd_q.plan import Slot
from asvd_q.quantization import TORCH_TYPES
from asvd_q_exporters._safetensors import Group, TensorSpec, write_safetensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, QuantSpec
    from asvd_q.quantization import StoredWeight
    from asvd_q.records import LayerRecord
    from asvd_q.store import Store

__all__ = ["MODULES", "MatrixFormat", "write_checkpoint", "write_json"]

MODULES: Mapping[Slot, str] = {"weight": "", "B": ".BLinear", "A": ".ALinear"}
"""What a slot's module is called, after the name of its layer."""

SHARD_BYTES = 4 << 30
_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class MatrixFormat:
    """How a format stores one matrix (out, in).

    Attributes:
        specs: (type, shape) of each tensor by suffix, for a shape and its quantization.
        tensors: the tensors themselves, by the same suffixes.
        as_source: a dense layer's matrix lies as the source keeps it, which may be (in, out).
    """

    specs: Callable[
        [tuple[int, int], QuantSpec | None], dict[str, tuple[torch.dtype, tuple[int, ...]]]
    ]
    tensors: Callable[[StoredWeight], dict[str, Tensor]]
    as_source: bool = False


def write_checkpoint(
    store: Store,
    folder: Path,
    format: MatrixFormat,
    *,
    float_type: FloatType,
    extra_config: Callable[[], Mapping[str, Any]] = dict,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a store as a checkpoint, with one layer in memory at a time.

    Args:
        folder: an existing empty directory.
        float_type: of everything that is not quantized.
        extra_config: entries for `config.json`, asked for after all tensors were written.
        shard_bytes: more than this is split over several files with an index.

    Raises:
        ExportError: naming the layer that is no whole linear layer of its own.
    """
    source = store.source
    changed = [record for record in store.records() if record.as_plan().changed]
    paths = {record.name: _path(record, source) for record in changed}
    tied = _tied(source)
    untied = any(f"{name}.weight" in tied for name in paths)
    dropped = set() if untied else {source.resolve(name) for name in tied}
    groups = list(_groups(store, changed, paths, dropped, format, TORCH_TYPES[float_type]))
    _write_shards(folder, groups, shard_bytes)
    for file in source.companion_files():
        shutil.copyfile(file, folder / file.name)
    _write_config(store, folder, float_type, untied, extra_config())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """As transformers writes its configurations."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _path(record: LayerRecord, source: SourceModel) -> str:
    """The layer's name in the source's files, which may leave out the base model's prefix."""
    stored = source.resolve(f"{record.name}.weight")
    if stored is not None:
        return stored.removesuffix(".weight")
    if f"{record.name}.weight" in _tied(source):
        return record.name
    raise ExportError(
        f"{record.name}: is one part of a larger parameter, which a checkpoint cannot replace; "
        "leave it dense, or export it with onnx"
    )


def _tied(source: SourceModel) -> dict[str, str]:
    """Parameters that are another one under a second name: name → the one that is stored."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if not getattr(source.config, "tie_word_embeddings", False):
        return {}
    if type(source.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return {}
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(source.config)]
    keys = getattr(model_class, "_tied_weights_keys", None)
    names = dict(keys) if isinstance(keys, Mapping) else {}
    return {name: twin for name, twin in names.items() if source.resolve(twin) is not None}


def _groups(
    store: Store,
    changed: list[LayerRecord],
    paths: dict[str, str],
    dropped: set[str | None],
    format: MatrixFormat,
    dtype: torch.dtype,
) -> Iterator[Group]:
    source = store.source
    layers = {f"{paths[record.name]}.weight": record for record in changed}
    biases = {
        f"{path}.bias": f"{path}{MODULES['A']}.bias"
        for path, record in zip(paths.values(), changed, strict=True)
        if record.form == "factors"
    }
    for name in [*source.tensors, *(name for name in layers if name not in source.tensors)]:
        if name in layers:
            record = layers[name]
            yield _layer_group(store, record, paths[record.name], format)
        elif name not in dropped:
            yield _source_group(source, name, biases.get(name, name), dtype)


def _layer_group(store: Store, record: LayerRecord, path: str, format: MatrixFormat) -> Group:
    transposed = format.as_source and record.transposed and record.form == "dense"
    specs = tuple(
        TensorSpec(
            f"{path}{MODULES[slot]}.{suffix}",
            dtype,
            tensor_shape[::-1] if transposed else tensor_shape,
        )
        for slot, shape in record.slot_shapes().items()
        for suffix, (dtype, tensor_shape) in format.specs(shape, record.quantization[slot]).items()
    )

    def load() -> dict[str, Tensor]:
        return {
            f"{path}{MODULES[slot]}.{suffix}": tensor.T.contiguous() if transposed else tensor
            for slot, weight in store.layer(record.name).weights.items()
            for suffix, tensor in format.tensors(weight).items()
        }

    return Group(specs, load)


def _source_group(source: SourceModel, name: str, target: str, dtype: torch.dtype) -> Group:
    info = source.tensors[name]
    if info.dtype not in _FLOATS:
        tensor = source.tensor(name)  # a small integer buffer: its type is only known now
        return Group((TensorSpec(target, tensor.dtype, info.shape),), lambda: {target: tensor})
    spec = TensorSpec(target, dtype, info.shape)
    return Group((spec,), lambda: {target: source.tensor(name).to(dtype)})


def _write_shards(folder: Path, groups: list[Group], shard_bytes: int) -> None:
    shards: list[list[Group]] = [[]]
    filled = 0
    for group in groups:
        if shards[-1] and filled + group.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(group)
        filled += group.nbytes
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", shards[0])
        return
    weight_map: dict[str, str] = {}
    for index, shard in enumerate(shards, start=1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard)
        weight_map |= {spec.name: file for group in shard for spec in group.specs}
    total = sum(group.nbytes for group in groups)
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


def _write_config(
    store: Store, folder: Path, float_type: FloatType, untied: bool, extra: Mapping[str, Any]
) -> None:
    source = store.source
    config: dict[str, Any] = json.loads((source.path / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = float_type
    if untied:
        config["tie_word_embeddings"] = False
    plan = store.finished_plan
    ranks, corrections = plan.ranks, plan.correction_ranks
    if ranks or corrections:
        try:
            classes = modeling.auto_map(type(source.config))
        except KeyError as error:
            raise ExportError(
                f"{next(iter(ranks | corrections))}: transformers has no class of its own for "
                f"{source.config.model_type}, so its factors cannot be loaded; leave all layers "
                "dense, or export with onnx"
            ) from error
        config["auto_map"] = classes
        config["architectures"] = [classes["AutoModelForCausalLM"].split(".")[1]]
        config["model_type"] = f"asvd_q_{source.config.model_type}"
        config["truncation_ranks"] = ranks
        if corrections:
            config["correction_ranks"] = corrections
        shutil.copyfile(modeling.__file__, folder / "modeling_asvd_q.py")
    elif "auto_map" in config:  # the source's own code travels with its own classes
        for file in sorted(source.path.glob("*.py")):
            shutil.copyfile(file, folder / file.name)
    write_json(folder / "config.json", config | dict(extra))
