"""An ONNX file, written with one tensor in memory at a time.

The protobuf library would hold all weights, and then the whole file once more. Only the few
bytes around a tensor's values need it; the values go from the reader to the file.

Source: https://protobuf.dev/programming-guides/encoding/ and onnx.proto.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir

from asvd_q.errors import ExportError
from asvd_q.files import atomic_path
from asvd_q_exporters.onnx.gather.views import take_row_views

__all__ = ["DATA_FILE", "MODEL_FILE", "property_bytes", "save", "saved_bytes"]

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx_data"
_EXTERNAL_ABOVE = 64 * 2**20
_PROTOBUF_LIMIT = 2**31 - 2**24
_SMALL = 1024
_ALIGNMENT = 64

# Field numbers of onnx.proto, each with wire type 2 (length-delimited).
_MODEL_GRAPH = bytes([7 << 3 | 2])
_GRAPH_INITIALIZER = bytes([5 << 3 | 2])
_TENSOR_RAW_DATA = bytes([9 << 3 | 2])


Tensors = Sequence[tuple[str, onnx_ir.TensorProtocol]]


@dataclass(frozen=True)
class _Entry:
    """A TensorProto in pieces: all but its values, and the values still to be read.

    Attributes:
        offset: where the values lie in the other file; None where they follow the header.
    """

    header: bytes
    name: str
    values: onnx_ir.TensorProtocol
    offset: int | None = None

    @property
    def prefix(self) -> bytes:
        if self.offset is not None:
            return self.header
        return self.header + _TENSOR_RAW_DATA + _varint(self.values.nbytes)

    @property
    def size(self) -> int:
        """Bytes in the graph."""
        return len(self.prefix) + (self.values.nbytes if self.offset is None else 0)

    @property
    def framed(self) -> int:
        """Bytes in the graph with what announces them."""
        return 1 + len(_varint(self.size)) + self.size


def save(model: onnx_ir.Model, folder: Path, external_data: bool | str) -> None:
    """Write `model.onnx`, and `model.onnx_data` where the weights lie outside it.

    Args:
        model: its initializers may be lazy; each is evaluated once. Of those that lie outside
            some reshapes are taken out of the graph, see `take_row_views`.
        folder: existing.
        external_data: True, False, or "auto": outside above 64 MiB.

    Raises:
        ExportError: too large for one file, and `external_data` forbids a second.
    """
    values = list(model.graph.initializers.values())
    entries, end = _entries([(value.name, value.const_value) for value in values], external_data)
    if end:
        _write_data(entries, folder / DATA_FILE)
        entries = _with_views(model.graph, entries)
        values = list(model.graph.initializers.values())
    model.graph.initializers.clear()
    proto = onnx_ir.to_proto(model)
    for value in values:
        model.graph.initializers[value.name] = value
    _write_model(proto, entries, folder / MODEL_FILE)


def saved_bytes(tensors: Tensors, external_data: bool | str) -> tuple[int, int]:
    """What initializers take in `model.onnx` and in `model.onnx_data`; no values are read.

    Raises:
        ExportError: as `save`.
    """
    entries, end = _entries(tensors, external_data)
    return sum(entry.framed for entry in entries), end


def property_bytes(key: str, value: str) -> int:
    """What a metadata property takes in `model.onnx`."""
    size: int = onnx.StringStringEntryProto(key=key, value=value).ByteSize()
    return 1 + len(_varint(size)) + size


def _entries(tensors: Tensors, external_data: bool | str) -> tuple[list[_Entry], int]:
    """Where every tensor lies, and the length of the other file.

    Small tensors stay in the graph whatever `external_data` says.
    """
    size = sum(tensor.nbytes for _, tensor in tensors)
    if external_data == "auto":
        external_data = size > _EXTERNAL_ABOVE
    if not external_data and size > _PROTOBUF_LIMIT:
        raise ExportError(
            f"external_data: false is not possible for weights of {size / 2**30:.1f} GiB, "
            "because an ONNX file ends at 2 GiB; use auto"
        )
    entries: list[_Entry] = []
    end = 0
    for name, tensor in tensors:
        if not external_data or tensor.nbytes < _SMALL:
            entries.append(_Entry(_header(name, tensor), name, tensor))
            continue
        offset = end + -end % _ALIGNMENT
        entries.append(_Entry(_header(name, tensor, offset), name, tensor, offset))
        end = offset + tensor.nbytes
    return entries, end


def _with_views(graph: onnx_ir.Graph, entries: list[_Entry]) -> list[_Entry]:
    """The entries of what the graph still reads, and those of views."""
    outside = {entry.name: entry for entry in entries if entry.offset is not None}
    views = [(view, outside[view.source]) for view in take_row_views(graph, outside)]
    return [entry for entry in entries if entry.name in graph.initializers] + [
        _Entry(
            _header(view.name, entry.values, entry.offset, view.shape),
            view.name,
            entry.values,
            entry.offset,
        )
        for view, entry in views
    ]


def _write_data(entries: list[_Entry], path: Path) -> None:
    """Write the values that lie outside, each at its place."""
    with atomic_path(path) as partial, partial.open("wb") as stream:
        for entry in entries:
            if entry.offset is not None:
                stream.write(bytes(entry.offset - stream.tell()))
                _write_values(entry.name, entry.values, stream)


def _write_model(proto: onnx.ModelProto, entries: list[_Entry], path: Path) -> None:
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    size = len(graph) + sum(entry.framed for entry in entries)
    with atomic_path(path) as partial, partial.open("wb") as stream:
        stream.write(proto.SerializeToString(deterministic=True))
        stream.write(_MODEL_GRAPH + _varint(size) + graph)
        for entry in entries:
            stream.write(_GRAPH_INITIALIZER + _varint(entry.size) + entry.prefix)
            if entry.offset is None:
                _write_values(entry.name, entry.values, stream)


def _header(
    name: str,
    tensor: onnx_ir.TensorProtocol,
    offset: int | None = None,
    shape: Sequence[int] | None = None,
) -> bytes:
    dims = [int(size) for size in tensor.shape] if shape is None else shape
    proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=dims)
    if offset is not None:
        proto.data_location = onnx.TensorProto.EXTERNAL
        place = {"location": DATA_FILE, "offset": offset, "length": tensor.nbytes}
        for key, value in place.items():
            proto.external_data.add(key=key, value=str(value))
    return bytes(proto.SerializeToString(deterministic=True))


def _write_values(name: str, tensor: onnx_ir.TensorProtocol, stream: BinaryIO) -> None:
    """Write a tensor's bytes from where they lie: a copy of an embedding may be gigabytes."""
    start = stream.tell()
    tensor.tofile(stream)
    written = stream.tell() - start
    if written != tensor.nbytes:
        raise ExportError(f"{name}: {written} bytes where the graph wants {tensor.nbytes}")


def _varint(number: int) -> bytes:
    """Base 128, low digits first, the top bit set on all but the last byte."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
