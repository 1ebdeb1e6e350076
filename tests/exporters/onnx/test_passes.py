"""Passes over small graphs leave what these compute as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper

from asvd_q_exporters.onnx.fused.passes import drop_reshapes, expand_norms, fuse_residuals
from tests.exporters.onnx.graphs import Array, graph_of, node_types, run_graph

_SHAPE = ("batch", "tokens", 16)


def _reshapes(*shapes: tuple[Any, ...], last: str = "Neg") -> onnx_ir.Model:
    """x (batch, tokens, 16) through reshapes to every shape in turn, then one more node."""
    nodes, values, initializers = [], [], {}
    for index, shape in enumerate(shapes):
        sizes = [0 if one == "batch" else -1 if isinstance(one, str) else one for one in shape]
        initializers[f"sizes{index}"] = np.array(sizes)
        inputs = ["x" if index == 0 else f"r{index - 1}", f"sizes{index}"]
        nodes.append(helper.make_node("Reshape", inputs, [f"r{index}"]))
        values.append((f"r{index}", shape))
    nodes.append(helper.make_node(last, [f"r{len(shapes) - 1}"], ["y"]))
    return graph_of(nodes, {"x": _SHAPE}, {"y": shapes[-1]}, initializers, dict(values))


def _unchanged(model: onnx_ir.Model, change: Callable[[onnx_ir.Graph], Any], x: Array) -> list[str]:
    """Types of nodes after a change that has to leave what comes out as it is."""
    before = run_graph(model, {"x": x})
    change(model.graph)
    for one, other in zip(run_graph(model, {"x": x}), before, strict=True):
        assert np.array_equal(one, other)
    return node_types(model)


X = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
HEADS, ROWS = ("batch", "tokens", 4, 4), ("batch", "wide", 8)


def test_reshapes_that_lead_back_go() -> None:
    assert _unchanged(_reshapes(HEADS, _SHAPE), drop_reshapes, X) == ["Neg"]
    assert _unchanged(_reshapes(HEADS, ROWS, _SHAPE), drop_reshapes, X) == ["Neg"]
    assert _unchanged(_reshapes(_SHAPE), drop_reshapes, X) == ["Neg"]


def test_other_reshapes_stay() -> None:
    assert _unchanged(_reshapes(HEADS), drop_reshapes, X) == ["Reshape", "Neg"]
    assert _unchanged(_reshapes(HEADS, ROWS), drop_reshapes, X) == ["Reshape", "Reshape", "Neg"]
    # What comes back is passed on, what leaves again stays.
    assert _unchanged(_reshapes(HEADS, _SHAPE, ROWS), drop_reshapes, X) == ["Reshape", "Neg"]


def test_reshapes_to_sizes_without_a_name_stay() -> None:
    model = _reshapes(HEADS, _SHAPE)
    for value in (model.graph.inputs[0], model.graph.node(1).outputs[0]):
        value.shape = onnx_ir.Shape(["batch", None, 16])
    assert _unchanged(model, drop_reshapes, X) == ["Reshape", "Reshape", "Neg"]


def _rms(x: Array, weight: Array, epsilon: float) -> Array:
    """In float64."""
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide**2).mean(-1, keepdims=True) + epsilon) * weight


def _norm(name: str, source: str, epsilon: float) -> onnx.NodeProto:
    return helper.make_node(
        "SimplifiedLayerNormalization",
        [source, "weight"],
        [name],
        axis=-1,
        epsilon=epsilon,
        stash_type=1,
    )


def _residual(
    *, other: tuple[Any, ...] = _SHAPE, outputs: Sequence[str] = ("y", "z")
) -> onnx_ir.Model:
    """z = 2 (x + other), and y the norm of x + other."""
    nodes = [
        helper.make_node("Add", ["x", "other"], ["sum"]),
        _norm("normed", "sum", 1e-5),
        helper.make_node("Identity", ["normed"], ["y"]),
        helper.make_node("Add", ["sum", "sum"], ["z"]),
    ]
    return graph_of(
        nodes,
        {"x": _SHAPE, "other": other},
        dict.fromkeys(outputs, _SHAPE),
        {"weight": np.linspace(-2, 2, 16, dtype=np.float32)},
        {name: _SHAPE for name in ("normed", "sum") if name not in outputs},
    )


def test_a_sum_and_its_norm_become_one_node() -> None:
    model = _residual()
    fuse_residuals(model.graph)
    assert node_types(model) == ["SkipSimplifiedLayerNormalization", "Identity", "Add"]
    other = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    x = X.copy()
    x[0], other[0] = x[0] * 1e-3, other[0] * 1e-3  # so small that epsilon counts
    x[1, 0, 3] = 1000
    y, z = run_graph(model, {"x": x, "other": other})
    weight = np.linspace(-2, 2, 16)
    assert np.allclose(y, _rms(x.astype(np.float64) + other, weight, 1e-5), rtol=1e-5, atol=1e-6)
    assert np.array_equal(z, 2 * (x + other))


def test_a_sum_that_nothing_else_reads_is_not_put_out() -> None:
    model = _residual()
    *_, add = model.graph
    model.graph.outputs.remove(add.outputs[0])
    model.graph.remove(add, safe=True)
    fuse_residuals(model.graph)
    assert [value.name for value in model.graph.node(0).outputs][1:] == ["", "", ""]
    [y] = run_graph(model, {"x": X, "other": X})
    weight = np.linspace(-2, 2, 16)
    assert np.allclose(y, _rms(2 * X.astype(np.float64), weight, 1e-5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [_residual(other=(1, 1, 16)), _residual(other=(16,)), _residual(outputs=("y", "z", "sum"))],
    ids=["one for all", "a vector", "the sum is put out"],
)
def test_other_sums_stay(model: onnx_ir.Model) -> None:
    fuse_residuals(model.graph)
    assert node_types(model) == ["Add", "SimplifiedLayerNormalization", "Identity", "Add"]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_norms_written_out_compute_the_same(scale: float, epsilon: float) -> None:
    nodes = [
        _norm("one", "x", epsilon),
        _norm("two", "one", epsilon),
        helper.make_node("Identity", ["two"], ["y"]),
    ]
    weight = np.linspace(-2, 2, 16, dtype=np.float32)
    shapes = {"one": _SHAPE, "two": _SHAPE}
    model = graph_of(nodes, {"x": _SHAPE}, {"y": _SHAPE}, {"weight": weight}, shapes)
    expand_norms(model.graph)
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert {node.domain for node in proto.graph.node} == {""}
    assert "SimplifiedLayerNormalization" not in node_types(model)
    assert proto.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    x = (X * scale).astype(np.float32)
    x[0, 0] = 0
    x[0, 1, 2] *= 1000
    expected = _rms(_rms(x, weight, epsilon), weight, epsilon)
    for optimized in (False, True):  # as it is written, and as the runtime knows it again
        (y,) = run_graph(model, {"x": x}, optimized=optimized)
        assert np.allclose(y, expected, rtol=1e-5, atol=1e-6)
