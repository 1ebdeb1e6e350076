"""What every Hugging Face checkpoint is made of: weight files, configuration, companions.

The formats differ in the tensors that hold one matrix of a layer, and in what they add to the
configuration.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asvd_q.artefact import WHOLE_MODEL, ArtefactBytes
from asvd_q.errors import ExportError
from asvd_q.files import write_text
from asvd_q.models import modeling_asvd_q as modeling
from asvd_q.quantization import TORCH_TYPES
from asvd_q_exporters._options import MODULES
from asvd_q_exporters._safetensors import (
    TORCH_NAMES,
    Group,
    TensorSpec,
    safetensors_bytes,
    write_safetensors,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, LayerPlan, Plan, QuantSpec
    from asvd_q.quantization import StoredWeight
    from asvd_q.store import Store

__all__ = [
    "MODULES",
    "CheckpointFormat",
    "checkpoint_bytes",
    "json_bytes",
    "write_checkpoint",
    "write_json",
]

SHARD_BYTES = 4 << 30
_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class CheckpointFormat:
    """How a format stores a model. A matrix in floating point is one tensor, as `nn.Linear` has it.

    Attributes:
        coded: (type, shape) of each tensor of a matrix in codes by suffix, for its shape (out, in)
            and settings; None where codes become the floats that they stand for.
        pack: the tensors themselves, by the same suffixes.
        config: entries for `config.json`.
        files: JSON files of its own, by their names.
        as_source: a dense layer's matrix lies as the source keeps it, which may be (in, out).
        own_class: the checkpoint brings a class of ours even where all layers are dense.
    """

    coded: (
        Callable[[tuple[int, int], QuantSpec], dict[str, tuple[torch.dtype, tuple[int, ...]]]]
        | None
    ) = None
    pack: Callable[[StoredWeight], dict[str, Tensor]] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    as_source: bool = False
    own_class: bool = False


@dataclass(frozen=True)
class _Piece:
    """Tensors of the file that come from one place.

    Attributes:
        layer: whose stored matrices they are; None for a tensor of the source.
        origin: the layer's name in the file, or the name of the source's tensor.
    """

    specs: tuple[TensorSpec, ...]
    layer: LayerPlan | None
    origin: str

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs)


@dataclass(frozen=True)
class _Layout:
    """A checkpoint as a plan and the headers of the source's weights determine it.

    Attributes:
        shards: what each weight file holds, by its name.
        config: content of `config.json`, but for what the format adds.
        companions: files that are copied as they are, by the name that they get.
    """

    shards: Mapping[str, Sequence[_Piece]]
    config: Mapping[str, Any]
    companions: Mapping[str, Path]

    @property
    def index(self) -> dict[str, Any] | None:
        """Content of the index that several weight files have."""
        if len(self.shards) == 1:
            return None
        pieces = [(file, piece) for file, shard in self.shards.items() for piece in shard]
        return {
            "metadata": {"total_size": sum(piece.nbytes for _, piece in pieces)},
            "weight_map": {spec.name: file for file, piece in pieces for spec in piece.specs},
        }


def write_checkpoint(
    store: Store,
    folder: Path,
    format: CheckpointFormat,
    *,
    float_type: FloatType,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a store as a checkpoint, with one layer in memory at a time.

    Args:
        folder: an existing empty directory.
        float_type: of everything that is not quantized.
        shard_bytes: more than this is split over several files with an index.

    Raises:
        ExportError: naming the layer that is no whole linear layer of its own.
    """
    layout = _layout(store.finished_plan, store.source, format, float_type, shard_bytes)
    dtype = TORCH_TYPES[float_type]
    for file, pieces in layout.shards.items():
        groups = [
            Group(piece.specs, partial(_load, store, piece, format, dtype)) for piece in pieces
        ]
        write_safetensors(folder / file, groups)
    if layout.index is not None:
        write_json(folder / _INDEX, layout.index)
    for name, path in layout.companions.items():
        shutil.copyfile(path, folder / name)
    for name, content in format.files.items():
        write_json(folder / name, content)
    write_json(folder / _CONFIG, {**layout.config, **format.config})


def checkpoint_bytes(
    plan: Plan,
    source: SourceModel,
    format: CheckpointFormat,
    *,
    float_type: FloatType,
    shard_bytes: int = SHARD_BYTES,
) -> ArtefactBytes:
    """The files that `write_checkpoint` makes of a store with this plan, to the byte.

    Raises:
        ExportError: as there.
    """
    layout = _layout(plan, source, format, float_type, shard_bytes)
    weights = {
        file: safetensors_bytes(spec for piece in pieces for spec in piece.specs)
        for file, pieces in layout.shards.items()
    }
    others = {name: path.stat().st_size for name, path in layout.companions.items()}
    if layout.index is not None:
        others[_INDEX] = json_bytes(layout.index)
    others |= {name: json_bytes(content) for name, content in format.files.items()}
    others[_CONFIG] = json_bytes({**layout.config, **format.config})
    return ArtefactBytes(weights, others)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """As transformers writes its configurations."""
    write_text(path, _json_text(content))


def json_bytes(content: Mapping[str, Any]) -> int:
    """Length of the file that `write_json` writes."""
    return len(_json_text(content).encode())


def _json_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _layout(
    plan: Plan,
    source: SourceModel,
    format: CheckpointFormat,
    float_type: FloatType,
    shard_bytes: int,
) -> _Layout:
    changed = [layer for layer in plan if layer.changed]
    paths = {layer.name: _path(layer, source) for layer in changed}
    tied = _tied(source)
    untied = any(f"{name}.weight" in tied for name in paths)
    dropped = set() if untied else {source.resolve(name) for name in tied}
    pieces = list(_pieces(source, changed, paths, dropped, format, TORCH_TYPES[float_type]))
    config, code = _config(plan, source, float_type, untied, format.own_class)
    companions = {file.name: file for file in (*source.companion_files(), *code)}
    return _Layout(_shards(pieces, shard_bytes), config, companions)


def _path(layer: LayerPlan, source: SourceModel) -> str:
    """The layer's name in the source's files, which may leave out the base model's prefix."""
    stored = source.resolve(f"{layer.name}.weight")
    if stored is not None:
        return source.model_name(stored).removesuffix(".weight")
    if f"{layer.name}.weight" in _tied(source):
        return layer.name
    raise ExportError(
        f"{layer.name}: is one part of a larger parameter, which a checkpoint cannot replace; "
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


def _pieces(
    source: SourceModel,
    changed: Sequence[LayerPlan],
    paths: Mapping[str, str],
    dropped: set[str | None],
    format: CheckpointFormat,
    dtype: torch.dtype,
) -> Iterator[_Piece]:
    layers = {f"{paths[layer.name]}.weight": layer for layer in changed}
    biases = {
        f"{paths[layer.name]}.bias": f"{paths[layer.name]}{MODULES['A']}.bias"
        for layer in changed
        if layer.form == "factors"
    }
    # Under the model's names: transformers renames old ones for its own classes alone.
    targets = {source.model_name(name): name for name in source.tensors}
    for target in [*targets, *(name for name in layers if name not in targets)]:
        if target in layers:
            layer = layers[target]
            path = paths[layer.name]
            yield _Piece(tuple(_layer_specs(layer, path, format, dtype)), layer, path)
        elif (name := targets[target]) not in dropped:
            info = source.tensors[name]
            kept = dtype if info.dtype in _FLOATS else TORCH_NAMES[info.dtype]
            yield _Piece((TensorSpec(biases.get(target, target), kept, info.shape),), None, name)


def _layer_specs(
    layer: LayerPlan, path: str, format: CheckpointFormat, dtype: torch.dtype
) -> Iterator[TensorSpec]:
    for slot, matrix in layer.slot_shapes().items():
        spec = layer.quantization[slot]
        tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"weight": (dtype, matrix)}
        if spec is not None and format.coded is not None:
            tensors = format.coded(matrix, spec)
        for suffix, (kind, shape) in tensors.items():
            lies = shape[::-1] if _lies_transposed(layer, format) else shape
            yield TensorSpec(f"{path}{MODULES[slot]}.{suffix}", kind, lies)


def _lies_transposed(layer: LayerPlan, format: CheckpointFormat) -> bool:
    return format.as_source and layer.transposed and layer.form == "dense"


def _load(
    store: Store, piece: _Piece, format: CheckpointFormat, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors of a piece, by name."""
    layer = piece.layer
    if layer is None:
        (spec,) = piece.specs
        return {spec.name: store.source.tensor(piece.origin).to(spec.dtype)}
    transposed = _lies_transposed(layer, format)
    found: dict[str, Tensor] = {}
    for slot, weight in store.layer(layer.name).weights.items():
        if layer.quantization[slot] is not None and format.pack is not None:
            tensors = format.pack(weight)
        else:
            tensors = {"weight": weight.dequantize(dtype)}
        for suffix, tensor in tensors.items():
            name = f"{piece.origin}{MODULES[slot]}.{suffix}"
            found[name] = tensor.T.contiguous() if transposed else tensor
    return found


def _shards(pieces: Sequence[_Piece], shard_bytes: int) -> dict[str, list[_Piece]]:
    shards: list[list[_Piece]] = [[]]
    filled = 0
    for piece in pieces:
        if shards[-1] and filled + piece.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(piece)
        filled += piece.nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {
        f"model-{index:05d}-of-{len(shards):05d}.safetensors": shard
        for index, shard in enumerate(shards, start=1)
    }


def _config(
    plan: Plan, source: SourceModel, float_type: FloatType, untied: bool, own_class: bool
) -> tuple[dict[str, Any], list[Path]]:
    """Content of `config.json`, and the files of code that its classes are in."""
    config = dict(source.config_fields)
    config.pop("torch_dtype", None)
    config["dtype"] = float_type
    if untied:
        config["tie_word_embeddings"] = False
    ranks, corrections = plan.ranks, plan.correction_ranks
    if not (ranks or corrections or own_class):  # its own code travels with its own classes
        return config, sorted(source.path.glob("*.py")) if "auto_map" in config else []
    try:
        classes = modeling.auto_map(type(source.config))
    except KeyError as error:
        raise ExportError(
            f"{next(iter(ranks | corrections), WHOLE_MODEL)}: transformers has no class of its own "
            f"for {source.config.model_type}, so none with other layers can be derived from it; "
            "leave all layers dense, or export with onnx"
        ) from error
    config["auto_map"] = classes
    config["architectures"] = [classes["AutoModelForCausalLM"].split(".")[1]]
    config["model_type"] = f"asvd_q_{source.config.model_type}"
    config["truncation_ranks"] = ranks
    if corrections:
        config["correction_ranks"] = corrections
    return config, [Path(modeling.__file__)]
