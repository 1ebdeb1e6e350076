"""What a decoder's graph says of itself: how it keeps its cache, and what a token reads of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx import TensorProto

from benchmarks._decode_driver import GraphFacts

__all__ = ["graph_facts", "operator_counts"]

_PAST = "past_key_values."
_SHARING = "GroupQueryAttention"
"""Writes new keys and values into the buffers that hold the old ones."""

_MATRICES = frozenset({"MatMul", "Gemm", "MatMulNBits", "MatMulBnb4"})
_PASSING = frozenset({"Cast", "DequantizeLinear", "Identity", "Reshape", "Squeeze", "Transpose"})
"""Operators through which an initializer reaches its product."""

_BITS = {
    TensorProto.FLOAT: 32,
    TensorProto.INT32: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.INT64: 64,
}


def graph_facts(path: Path) -> GraphFacts:
    """Read from the file of a graph, without the weights that lie beside it."""
    graph = onnx.load(path, load_external_data=False).graph
    consumers = [
        node.op_type for node in graph.node for name in node.input if name.startswith(_PAST)
    ]
    return GraphFacts(
        shared_cache=bool(consumers) and set(consumers) == {_SHARING},
        token_bytes=_token_bytes(graph),
        head_size=_head_size(graph, path),
    )


def operator_counts(path: Path) -> dict[str, int]:
    """Nodes by operator, the most frequent first; constants are none."""
    graph = onnx.load(path, load_external_data=False).graph
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type != "Constant":
            found[node.op_type] = found.get(node.op_type, 0) + 1
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def _head_size(graph: onnx.GraphProto, path: Path) -> int:
    """From the graph's inputs, or from what lies beside it where these leave it open."""
    for one in graph.input:
        if one.name.startswith(_PAST):
            size = one.type.tensor_type.shape.dim[3].dim_value
            break
    else:
        raise ValueError(f"{path} has no input {_PAST}%d.key: it keeps no cache")
    if size:
        return int(size)
    config = path.parent / "genai_config.json"
    if not config.is_file():
        raise ValueError(f"{path} does not say its head size, and there is no {config.name}")
    return int(json.loads(config.read_text(encoding="utf-8"))["model"]["decoder"]["head_size"])


def _token_bytes(graph: onnx.GraphProto) -> int:
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    producers = {
        name: node for node in graph.node if node.op_type in _PASSING for name in node.output
    }

    def initializers(names: Iterable[str]) -> set[str]:
        found: set[str] = set()
        for name in names:
            if name in tensors:
                found.add(name)
            elif name in producers:
                found |= initializers(producers[name].input)
        return found

    # A matrix that two products read is read twice: names are distinct within a node alone.
    return sum(
        _nbytes(tensors[name])
        for node in graph.node
        if node.op_type in _MATRICES
        for name in initializers(node.input)
        if len(tensors[name].dims) > 0
    )


def _nbytes(tensor: TensorProto) -> int:
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        raise ValueError(f"{tensor.name}: weights of type {tensor.data_type} are not known here")
    return -(-math.prod(map(int, tensor.dims)) * bits // 8)
