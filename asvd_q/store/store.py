"""A directory of safetensors and layer records, one pair of files per block.

    store.json                     header: source, plan, key
    blocks/00000.safetensors       stored tensors of block 0: "<layer>.<slot>.<part>"
    blocks/00000.json              its records and the hash of the tensors; written last
    blocks/embedding.…             of the embedding, where the plan has one
    blocks/outside.…               of the output head, likewise

A block counts as finished when its JSON file exists and the hash in it is the tensors'. The
store knows no runtime's layout: codes are unpacked, one per byte; packing is an exporter's work.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from asvd_q.errors import ResourceError, StoreError
from asvd_q.files import atomic_path, make_folder, sha256, write_text
from asvd_q.models import SourceModel, WeightRef
from asvd_q.plan import FloatType, LayerPlan, Part, Plan, Slot
from asvd_q.quantization.registry import weight_from_tensors
from asvd_q.quantization.weights import TORCH_TYPES, FloatWeight, StoredWeight
from asvd_q.records import ArtefactMetadata, LayerRecord, LayerSpectrum, SourceIdentity

__all__ = ["Store", "StoreHeader", "StoredLayer", "is_store", "store_metadata"]

_HEADER = "store.json"
_BLOCKS = "blocks"
_OUTSIDE = "outside"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoreHeader(_Frozen):
    """What a store is of.

    Attributes:
        key: hash of everything the stored bytes depend on; a store is continued only under
            the same key.
        asvd_q: version of the package that made it.
        plan: what was decided for every layer.
    """

    version: Literal[1] = 1
    key: str
    asvd_q: str
    source: SourceIdentity
    plan: Plan


class _BlockFile(_Frozen):
    tensors_sha256: str
    records: tuple[LayerRecord, ...]


@dataclass(frozen=True)
class StoredLayer:
    """One layer as it is stored: its record and one weight per slot.

    A layer that was left alone has its source weight under "weight", in the store's float type.
    The bias is not here: it is the source's, untouched, and belongs to A or to the dense weight.

    Attributes:
        spectrum: of what its factors were cut from. Known when it has just been made; a store
            does not keep it.
    """

    record: LayerRecord
    weights: Mapping[Slot, StoredWeight]
    spectrum: LayerSpectrum | None = None

    def replacement(self) -> dict[Slot, Tensor] | None:
        """Matrices that stand in for the source weight; None for a layer left alone.

        float32, dequantized: exactly what is evaluated.
        """
        if not self.record.as_plan().changed:
            return None
        return {slot: weight.dequantize() for slot, weight in self.weights.items()}


class Store:
    """A compressed model on disk. `Store.create` starts one, `Store.open` reads one."""

    def __init__(self, folder: Path, header: StoreHeader, source: SourceModel) -> None:
        self.folder = folder
        self.header = header
        self.source = source.rounded_to(TORCH_TYPES[header.plan.float_type])
        self._records: dict[str, LayerRecord] | None = None

    @classmethod
    def create(
        cls,
        folder: Path,
        header: StoreHeader,
        source: SourceModel,
        *,
        replacing: Collection[str] = (),
    ) -> Store:
        """Start a store, or go on with an unfinished one of the same key.

        Args:
            replacing: keys of stores that this one takes the place of.

        Raises:
            StoreError: the folder holds a store of another key.
            ResourceError: the folder cannot be written.
        """
        make_folder(folder / _BLOCKS)
        path = folder / _HEADER
        if path.exists():
            found = _read_header(path)
            if found.key != header.key and found.key in replacing:
                # Blocks first: under the new header they would be taken for its own.
                shutil.rmtree(folder / _BLOCKS)
                make_folder(folder / _BLOCKS)
                write_text(path, _header_text(header))
            elif found.key != header.key:
                raise StoreError(
                    f"{folder} holds the store of another recipe, model or version: choose "
                    "another `output`, or start afresh with --fresh"
                )
        else:
            write_text(path, _header_text(header))
        return cls(folder, header, source)

    @classmethod
    def open(cls, folder: Path, source: SourceModel) -> Store:
        """Read a finished store.

        Args:
            source: the model that the store was made from.

        Raises:
            StoreError: no store there, not finished, damaged, or made from another model.
        """
        path = folder / _HEADER
        if not path.is_file():
            raise StoreError(f"{folder} is not a store: it has no {_HEADER}")
        store = cls(folder, _read_header(path), source)
        if store.header.source.weights_sha256 != source.identity.weights_sha256:
            raise StoreError(
                f"{folder} was made from {store.header.source.name}, whose weights are not those "
                f"in {source.path}: give the folder of the model it was made from with --model"
            )
        missing = [block for block in store.blocks() if not store.is_finished(block)]
        if missing:
            raise StoreError(
                f"{folder} is not finished or damaged (block {_stem(missing[0])}): "
                "run its recipe again, which continues from there"
            )
        return store

    @property
    def plan(self) -> Plan:
        """What was decided for every layer, before anything was made."""
        return self.header.plan

    @property
    def finished_plan(self) -> Plan:
        """What was done, which may be less than was planned: see `setbacks`."""
        layers = tuple(record.as_plan() for record in self.records())
        return self.plan.model_copy(update={"layers": layers})

    @property
    def setbacks(self) -> dict[str, LayerPlan]:
        """Layers that kept a form which was not planned, as they are, each with its reason."""
        planned = {layer.name: _choice(layer) for layer in self.plan}
        return {
            layer.name: layer
            for layer in self.finished_plan
            if _choice(layer) != planned[layer.name]
        }

    @property
    def key(self) -> str:
        """Hash of all that the stored bytes depend on."""
        return self.header.key

    @property
    def float_type(self) -> FloatType:
        """The type of everything that is not quantized."""
        return self.header.plan.float_type

    def blocks(self) -> list[Part]:
        """Parts that hold planned layers, in the order they are compressed and in the model's."""
        return _blocks(self.plan)

    def is_finished(self, block: Part) -> bool:
        """Whether the block's files are there and whole."""
        record = self._path(block, "json")
        tensors = self._path(block, "safetensors")
        if not (record.is_file() and tensors.is_file()):
            return False
        try:
            content = _BlockFile.model_validate_json(record.read_bytes())
        except ValidationError:
            return False
        return content.tensors_sha256 == sha256(tensors)

    def write_block(self, block: Part, layers: list[StoredLayer]) -> None:
        """Write all planned layers of one block; tensors first, the record that seals them last.

        Layers whose record says they were left alone bring no tensors.

        Raises:
            ResourceError: the disk is full or cannot be written.
        """
        tensors = {
            f"{layer.record.name}.{slot}.{part}": tensor.contiguous()
            for layer in layers
            if layer.record.as_plan().changed
            for slot, weight in layer.weights.items()
            for part, tensor in weight.tensors().items()
        }
        path = self._path(block, "safetensors")
        self._path(block, "json").unlink(missing_ok=True)
        try:
            with atomic_path(path) as partial:
                save_file(tensors, partial)
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise ResourceError(f"cannot write {path}: {error}") from error
        content = _BlockFile(
            tensors_sha256=sha256(path), records=tuple(layer.record for layer in layers)
        )
        write_text(self._path(block, "json"), content.model_dump_json(indent=1) + "\n")
        self._records = None

    def records(self) -> list[LayerRecord]:
        """Records of all finished blocks, in model order."""
        return list(self._by_name().values())

    def layer(self, name: str) -> StoredLayer:
        """One layer, its tensors read now.

        Raises:
            StoreError: no such layer, or its file is damaged.
        """
        record = self._by_name().get(name)
        if record is None:
            raise StoreError(f"{self.folder} has no layer called {name}")
        if not record.as_plan().changed:
            return StoredLayer(record, {"weight": FloatWeight(self._source_weight(record))})
        path = self._path(record.as_plan().part, "safetensors")
        weights: dict[Slot, StoredWeight] = {}
        shapes = record.slot_shapes()
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                for slot, spec in record.quantization.items():
                    prefix = f"{name}.{slot}."
                    parts = {
                        key.removeprefix(prefix): file.get_tensor(key).clone()
                        for key in names
                        if key.startswith(prefix)
                    }
                    weights[slot] = weight_from_tensors(parts, spec, shapes[slot])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise StoreError(f"{path} is damaged at {name}: {error}") from error
        return StoredLayer(record, weights)

    def layers(self) -> Iterator[StoredLayer]:
        """All layers in model order, one in memory at a time."""
        for name in self._by_name():
            yield self.layer(name)

    def replaced(self, name: str) -> dict[Slot, Tensor] | None:
        """`StoredLayer.replacement` of a layer; None where the store has none of that name."""
        record = self._by_name().get(name)
        if record is None or not record.as_plan().changed:  # whose weight need not be read
            return None
        return self.layer(name).replacement()

    def metadata(
        self, format: str, options: Mapping[str, object] | None = None
    ) -> ArtefactMetadata:
        """What an artefact made from this store says of itself."""
        return _metadata(self.header, self.records(), format, options or {})

    def _source_weight(self, record: LayerRecord) -> Tensor:
        return self.source.matrix(self._refs[record.name]).contiguous()

    @cached_property
    def _refs(self) -> dict[str, WeightRef]:
        """Where each weight lies in the source: a square one does not show how it is kept."""
        from asvd_q.models.skeleton import build_skeleton

        return build_skeleton(self.source).by_name

    def _by_name(self) -> dict[str, LayerRecord]:
        if self._records is None:
            records = _read_records(self.folder, self.header.plan)
            self._records = {record.name: record for record in records}
        return self._records

    def _path(self, block: Part, suffix: str) -> Path:
        return _block_path(self.folder, block, suffix)


def is_store(folder: Path) -> bool:
    """Whether a folder holds a store, finished or not."""
    return (folder / _HEADER).is_file()


def store_metadata(folder: Path) -> ArtefactMetadata:
    """What a store says of itself, read without its source model; finished blocks only."""
    header = _read_header(folder / _HEADER)
    return _metadata(header, _read_records(folder, header.plan), "store", {})


def _blocks(plan: Plan) -> list[Part]:
    found = {layer.part for layer in plan}
    inside = sorted(part for part in found if isinstance(part, int))
    ordered: tuple[Part, ...] = ("embedding", *inside, None)
    return [part for part in ordered if part in found]


def _block_path(folder: Path, block: Part, suffix: str) -> Path:
    return folder / _BLOCKS / f"{_stem(block)}.{suffix}"


def _read_records(folder: Path, plan: Plan) -> list[LayerRecord]:
    """Records of all finished blocks, in model order."""
    records: list[LayerRecord] = []
    for block in _blocks(plan):
        path = _block_path(folder, block, "json")
        if path.is_file():
            try:
                content = _BlockFile.model_validate_json(path.read_bytes())
            except ValidationError as error:
                raise StoreError(f"{path} is damaged: run the recipe again") from error
            records.extend(content.records)
    return records


def _metadata(
    header: StoreHeader, records: list[LayerRecord], format: str, options: Mapping[str, object]
) -> ArtefactMetadata:
    done = header.plan.model_copy(update={"layers": tuple(layer.as_plan() for layer in records)})
    return ArtefactMetadata.model_validate(
        {
            "asvd_q": header.asvd_q,
            "format": format,
            "options": dict(options),
            "source": header.source,
            "float_type": header.plan.float_type,
            "store_key": header.key,
            "truncation_ranks": done.ranks,
            "correction_ranks": done.correction_ranks,
            "layers": tuple(records),
        }
    )


def _stem(block: Part) -> str:
    if block is None:
        return _OUTSIDE
    return block if isinstance(block, str) else f"{block:05d}"


def _header_text(header: StoreHeader) -> str:
    return header.model_dump_json(indent=1) + "\n"


def _read_header(path: Path) -> StoreHeader:
    try:
        return StoreHeader.model_validate_json(path.read_bytes())
    except ValidationError as error:
        summary = re.sub(r"\s+", " ", str(error))[:200]
        raise StoreError(f"{path} is damaged or of another version: {summary}") from error


def _choice(layer: LayerPlan) -> tuple[object, ...]:
    return layer.form, layer.rank, layer.quantization
