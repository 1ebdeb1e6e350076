"""Reads an ONNX artefact's weights with numpy and the ONNX protobuf alone.

Written from the operators' specifications, and shares no code with the exporter on purpose: what
both agree on is in the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from asvd_q.artefact import METADATA_FILE, parse_metadata, read_metadata
from asvd_q.errors import ArtefactError, first_line
from asvd_q.records import ArtefactMetadata, LayerRecord
from asvd_q_exporters.onnx.bnb4 import unpack as bnb4
from asvd_q_exporters.onnx.gather import unpack as gather
from asvd_q_exporters.onnx.nbits import unpack as nbits
from asvd_q_exporters.onnx.qdq import unpack as qdq

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.plan import QuantSpec, Slot

__all__ = ["READERS", "read_layers"]

Shape = tuple[int, int]

READERS: Mapping[str, Callable[..., NDArray[np.float32]]] = {
    "MatMulNBits": nbits.dequantize,
    "MatMulBnb4": bnb4.dequantize,
    "DequantizeLinear": qdq.dequantize,
}
"""By operator: its attributes, then its initializers, to float32 (out, in)."""


def read_layers(folder: Path) -> Iterator[tuple[str, Mapping[Slot, Tensor]]]:
    """Every layer of the artefact's records: name, and float32 (out, in) by slot.

    Raises:
        ArtefactError: no model, a damaged one, or one that lacks a matrix of its records.
    """
    import torch

    path = folder / "model.onnx"
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors share no base with onnx's
        raise ArtefactError(
            f"{path} cannot be read: {first_line(error)}; export it again"
        ) from error
    properties = {entry.key: entry.value for entry in model.metadata_props}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        if node.op_type in READERS:
            codes = next((name for name in node.input if name in tensors), "")
            nodes[codes.rpartition(".")[0]] = node
    lookups = {
        node.input[2].rpartition(".")[0]: node
        for node in model.graph.node
        if node.op_type == "GatherBlockQuantized"
    }
    reshaped = {
        node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Reshape"
    }
    shared = _property(properties, "asvd_q.shared", path)
    merged = _property(properties, "asvd_q.merged", path)
    within = {
        member: (name, rows) for name, members in merged.items() for member, rows in members.items()
    }
    held = {name.rpartition(".")[0]: other.rpartition(".")[0] for name, other in shared.items()}

    def array(name: str) -> NDArray[Any]:
        try:
            values: NDArray[Any] = numpy_helper.to_array(tensors[name], base_dir=str(folder))
        except (KeyError, OSError, ValueError, onnx.checker.ValidationError) as error:
            raise ArtefactError(f"{path} holds no readable {name}; export it again") from error
        return values

    def matrix(prefix: str, shape: Shape, spec: QuantSpec | None) -> NDArray[np.float32]:
        weight = f"{prefix}.weight"
        if weight in shared:
            return array(shared[weight]).astype(np.float32)
        if spec is None:
            return array(weight).T.astype(np.float32)
        return decoded(prefix, nodes.get(prefix), shape)

    def rows(prefix: str, shape: Shape, spec: QuantSpec | None) -> NDArray[np.float32]:
        if spec is None:
            return array(f"{prefix}.weight").astype(np.float32)
        return decoded(prefix, lookups.get(prefix), shape)

    def decoded(prefix: str, node: onnx.NodeProto | None, shape: Shape) -> NDArray[np.float32]:
        if node is None:
            raise ArtefactError(f"{path} has no node with the codes of {prefix}; export it again")
        attributes = {entry.name: entry.i for entry in node.attribute}
        try:
            if node.op_type in READERS:
                names = [name for name in node.input if name in tensors]
                parts = [array(name) for name in names if not name.endswith(".bias")]
                return READERS[node.op_type](attributes, *parts).reshape(shape)
            data = reshaped.get(node.input[0], node.input[0])
            rest = map(array, (data, *node.input[2:]))
            return gather.dequantize_rows(attributes, shape, *rest)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"{path}: {prefix} does not fit its own node") from error

    recent = lru_cache(maxsize=1)(matrix)

    def member(prefix: str, shape: Shape, spec: QuantSpec | None) -> NDArray[np.float32]:
        if prefix not in within:
            return matrix(prefix, shape, spec)
        name, (first, last) = within[prefix]
        count = max(end for _, end in merged[name].values())
        return recent(name, (count, shape[1]), spec)[first:last]

    for record in _metadata(folder, properties).layers:
        read = rows if record.role == "embedding" else member
        yield (
            record.name,
            {
                slot: torch.from_numpy(
                    np.ascontiguousarray(read(prefix, shape, record.quantization[slot]))
                )
                for slot, prefix, shape in _matrices(record, held)
            },
        )


def _metadata(folder: Path, properties: Mapping[str, str]) -> ArtefactMetadata:
    if (folder / METADATA_FILE).is_file() or "asvd_q" not in properties:
        return read_metadata(folder)
    return parse_metadata(properties["asvd_q"], f"the metadata in {folder / 'model.onnx'}")


def _property(properties: Mapping[str, str], key: str, path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(properties.get(key, "{}"))
    except ValueError as error:
        raise ArtefactError(f"{path}: its property {key} is damaged; export it again") from error
    return found


def _matrices(
    record: LayerRecord, held: Mapping[str, str]
) -> Iterator[tuple[Slot, str, tuple[int, int]]]:
    """Slot, prefix of its initializers, and shape of each matrix.

    Args:
        held: the prefix that holds what another one stands for.
    """
    rows, columns = record.shape
    if record.rank is None:
        yield "weight", record.name, record.shape
        return
    if record.form == "correction":
        yield "weight", f"{record.name}.weight", record.shape
    b = f"{record.name}.BLinear"
    yield "B", held.get(b, b), (record.rank, columns)
    yield "A", f"{record.name}.ALinear", (rows, record.rank)
