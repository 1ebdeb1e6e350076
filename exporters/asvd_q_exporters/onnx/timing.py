"""How long ONNX Runtime takes for one row through each of many matrices, on this machine.

All nodes lie in one graph, and the runtime's own profile says how long each took. A session for
each matrix, run again and again, would find its weights in the innermost cache; in a model they
were last read a token ago, which for small matrices in floating point makes the time several
times longer. A ballast matrix keeps that so where few others are measured. What the profile itself
adds to a node is read from nodes that do nothing, and taken off.

Source: https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from asvd_q.errors import ExportError
from asvd_q.plan import FloatType
from asvd_q_exporters.onnx.nodes import CONTRIB, MatrixNode, Part, float_node
from asvd_q_exporters.onnx.session import PROVIDERS, session_options

__all__ = ["node_seconds", "typical"]

_AT_ONCE = 256 * 2**20
"""Bytes of weights in one graph; while it is loaded there are several copies of them."""

_LEAST = 64 * 2**20
"""Bytes that a pass through a graph reads at least: more than most processors' caches hold."""

_BALLAST_ROW = 4096
_WARM_UP, _FEWEST, _MOST, _SECONDS = 3, 12, 64, 2.0
"""Passes that do not count; passes that do, at least and at most; when to stop between them."""

_FLOOR = 1e-7
"""Seconds. The profile counts whole microseconds: less is no more than its noise."""

_EMPTY, _BALLAST = "empty", "ballast"
_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
_CASTS = ("in", "out")


def node_seconds(nodes: Sequence[MatrixNode], dtype: FloatType, opset: int) -> list[float]:
    """Seconds that each node takes for one row.

    Args:
        dtype: of the activations between nodes; casts that a node needs count as part of it.
        opset: of the standard operators.

    Raises:
        ExportError: the runtime has replaced a node by something else.
    """
    seconds: list[float] = []
    for chunk in _chunks(nodes):
        seconds += _measure(chunk, dtype, opset)
    return seconds


def typical(durations: Sequence[float]) -> float:
    """Mean of the middle half: durations in whole microseconds, a few of them far too long."""
    ordered = np.sort(np.asarray(durations, dtype=np.float64))
    quarter = len(ordered) // 4
    return float(ordered[quarter : len(ordered) - quarter].mean())


def _chunks(nodes: Sequence[MatrixNode]) -> Iterator[list[MatrixNode]]:
    chunk: list[MatrixNode] = []
    size = 0
    for node in nodes:
        if chunk and size + node.nbytes > _AT_ONCE:
            yield chunk
            chunk, size = [], 0
        chunk.append(node)
        size += node.nbytes
    if chunk:
        yield chunk


def _measure(nodes: Sequence[MatrixNode], dtype: FloatType, opset: int) -> list[float]:
    level = next((node.session_level for node in nodes if node.session_level is not None), None)
    durations = _profile(_model(nodes, dtype, opset), level)
    idle = typical(durations[_EMPTY])
    seconds: list[float] = []
    for index, node in enumerate(nodes):
        if str(index) not in durations:
            raise ExportError(f"ONNX Runtime's profile does not name its kernel for {node}")
        names = [f"{index}", *(f"{index}/{cast}" for cast in _CASTS)]
        own = sum(typical(durations[name]) - idle for name in names if name in durations)
        seconds.append(max(own * 1e-6, _FLOOR))
    return seconds


def _profile(model: onnx.ModelProto, accuracy_level: int | None) -> dict[str, list[float]]:
    """Microseconds of every pass that counts, by node."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(accuracy_level)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=PROVIDERS
        )
        inputs = {
            one.name: np.full(one.shape, 0.5, np.float32 if "float16" not in one.type else "f2")
            for one in session.get_inputs()
        }
        start, passes = time.monotonic(), 0
        for done in range(_WARM_UP + _MOST):
            if done >= _WARM_UP + _FEWEST and time.monotonic() - start > _SECONDS:
                break
            session.run(None, inputs)
            passes += 1
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, list[float]] = {}
    suffix = "_kernel_time"
    for event in events:
        name = event["name"]
        if name.endswith(suffix):
            kind = name.removesuffix(suffix)
            found.setdefault(_EMPTY if kind.startswith(_EMPTY) else kind, []).append(event["dur"])
    return {name: times[_WARM_UP * len(times) // passes :] for name, times in found.items()}


def _model(nodes: Sequence[MatrixNode], dtype: FloatType, opset: int) -> onnx.ModelProto:
    """All nodes side by side, and between them some that do nothing."""
    generator = np.random.default_rng(0)
    graph = _Graph(dtype)
    size = sum(node.nbytes for node in nodes)
    if size < _LEAST:
        rows = -(-(_LEAST - size) // (4 * _BALLAST_ROW))
        graph.add(_BALLAST, float_node((rows, _BALLAST_ROW), "float32"), generator)
    for index, node in enumerate(nodes):
        if index % 8 == 0:
            graph.add_empty(f"{_EMPTY}{index}", node.columns)
        graph.add(str(index), node, generator)
    standard = helper.make_opsetid("", opset)
    proto = helper.make_graph(
        graph.nodes, "matrices", list(graph.inputs.values()), graph.outputs, graph.initializers
    )
    return helper.make_model(
        proto,
        opset_imports=[standard, helper.make_opsetid(CONTRIB, 1)],
        ir_version=helper.find_min_ir_version_for([standard]),
    )


class _Graph:
    """A graph in the making; nodes with as many columns share their input, as in a model."""

    def __init__(self, dtype: FloatType) -> None:
        self._dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: dict[str, onnx.ValueInfoProto] = {}
        self.outputs: list[onnx.ValueInfoProto] = []

    def add(self, name: str, node: MatrixNode, generator: np.random.Generator) -> None:
        entering = self._input(node.columns)
        leaving = self._output(f"{name}.y", node.rows)
        cast = node.activations != self._dtype
        if cast:
            own = f"{name}.x"
            self._cast(f"{name}/{_CASTS[0]}", entering, own, node.activations)
            entering, leaving, final = own, f"{name}.z", leaving
        parts = [f"{name}.{number}" for number in range(len(node.parts))]
        for part, initializer in zip(node.parts, parts, strict=True):
            self.initializers.append(_tensor(initializer, part, generator))
        attributes = dict(node.attributes)
        if node.dequantizes:
            matrix = f"{name}.w"
            self.nodes.append(helper.make_node(node.operator, parts, [matrix], **attributes))
            self.nodes.append(helper.make_node("MatMul", [entering, matrix], [leaving], name=name))
        else:
            self.nodes.append(
                helper.make_node(
                    node.operator,
                    [entering, *parts],
                    [leaving],
                    name=name,
                    domain=node.domain,
                    **attributes,
                )
            )
        if cast:
            self._cast(f"{name}/{_CASTS[1]}", leaving, final, self._dtype)

    def add_empty(self, name: str, columns: int) -> None:
        """A node that does nothing, which is kept because it leads from an input to an output."""
        entering, leaving = self._input(columns), self._output(f"{name}.y", columns)
        self.nodes.append(helper.make_node("Identity", [entering], [leaving], name=name))

    def _cast(self, name: str, entering: str, leaving: str, type: FloatType) -> None:
        node = helper.make_node("Cast", [entering], [leaving], name=name, to=_TYPES[type])
        self.nodes.append(node)

    def _input(self, columns: int) -> str:
        name = f"x{columns}"
        if name not in self.inputs:
            self.inputs[name] = self._row(name, columns)
        return name

    def _output(self, name: str, rows: int) -> str:
        self.outputs.append(self._row(name, rows))
        return name

    def _row(self, name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, _TYPES[self._dtype], (1, 1, width))


def _tensor(name: str, part: Part, generator: np.random.Generator) -> onnx.TensorProto:
    """Any codes, and floats of the size of scales: none that is denormal."""
    if part.type in ("float32", "float16"):
        values: NDArray[Any] = generator.random(part.shape, dtype=np.float32) * np.float32(0.01)
        values += np.float32(0.01)
        return numpy_helper.from_array(values.astype(part.type), name)
    codes = generator.integers(0, 256, part.nbytes, dtype=np.uint8)
    dtype = TensorProto.DataType.Value(part.type.upper())
    return onnx.TensorProto(name=name, dims=part.shape, data_type=dtype, raw_data=codes.tobytes())
