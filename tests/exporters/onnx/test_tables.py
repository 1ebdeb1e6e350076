"""Tables take fewer steps in small graphs; what comes out stays the same."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import helper

from asvd_q_exporters.onnx.fused.tables import flatten_tables, halve_tables
from tests.exporters.onnx.graphs import graph_of, node_types, run_graph

_ROWS, _HALF = 6, 4
_NUMBERS = {
    "first": np.array([0]),
    "half": np.array([_HALF]),
    "whole": np.array([2 * _HALF]),
    "second": np.array([1]),
    "step": np.array([1]),
    "zero": np.array(0),
    "scale": np.array(1.5, np.float32),
    "rows": np.arange(_ROWS, dtype=np.float32)[None, :, None],
}


def _cut(source: str, output: str, axis: str = "second", end: str = "half") -> onnx.NodeProto:
    return helper.make_node("Slice", [source, "first", end, axis, "step"], [output])


def _tables(*rest: onnx.NodeProto, again: str = "angles") -> onnx_ir.Model:
    """cos and sin of angles that come twice, scaled, without their first axis; and `rest`."""
    nodes = [
        helper.make_node("Concat", ["angles", again], ["twice"], axis=-1),
        helper.make_node("Cos", ["twice"], ["cos"]),
        helper.make_node("Mul", ["cos", "scale"], ["scaled"]),
        helper.make_node("Gather", ["scaled", "zero"], ["rows_of_cos"], axis=0),
        helper.make_node("Sin", ["twice"], ["sin"]),
        helper.make_node("Gather", ["sin", "zero"], ["rows_of_sin"], axis=0),
        *rest,
    ]
    whole = (1, _ROWS, 2 * _HALF)
    known = dict.fromkeys(("twice", "cos", "scaled", "sin"), whole)
    known |= dict.fromkeys(("rows_of_cos", "rows_of_sin"), whole[1:])
    outputs = dict.fromkeys(("y", "z"), ("rows", "width"))
    inputs = {"angles": (1, _ROWS, _HALF)} | (
        {again: (1, _ROWS, _HALF)} if again != "angles" else {}
    )
    return graph_of(nodes, inputs, outputs, _NUMBERS, known)


def _halved(model: onnx_ir.Model) -> list[str]:
    """Types of nodes afterwards; what comes out is what came out before."""
    plain = onnx_ir.from_proto(copy.deepcopy(onnx_ir.to_proto(model)))
    halve_tables(model.graph)
    random = np.random.default_rng(0)
    feeds = {
        str(value.name): random.normal(size=(1, _ROWS, _HALF)).astype(np.float32)
        for value in plain.graph.inputs
    }
    for one, other in zip(run_graph(model, feeds), run_graph(plain, feeds), strict=True):
        assert one.shape == other.shape
        assert np.array_equal(one, other)
    return node_types(model)


def _negated(source: str, output: str) -> onnx.NodeProto:
    return helper.make_node("Neg", [source], [output])


def test_a_half_that_nothing_reads_is_not_computed() -> None:
    cuts = [_cut("rows_of_cos", "c"), _negated("c", "y"), _cut("rows_of_sin", "s")]
    types = _halved(_tables(*cuts, _negated("s", "z")))
    assert "Concat" not in types
    assert "Slice" not in types


@pytest.mark.parametrize(
    "rest",
    [
        [_negated("rows_of_cos", "y"), _cut("rows_of_sin", "s"), _negated("s", "z")],
        [_cut("rows_of_cos", "c", end="whole"), _negated("c", "y"), _negated("rows_of_sin", "z")],
        [_cut("rows_of_cos", "c", axis="first"), _negated("c", "y"), _negated("c", "z")],
    ],
    ids=["the whole is read", "a longer part", "another axis"],
)
def test_a_table_that_is_read_otherwise_stays(rest: list[onnx.NodeProto]) -> None:
    assert "Concat" in _halved(_tables(*rest))


def test_two_different_halves_stay() -> None:
    cuts = [_cut("rows_of_cos", "c"), _negated("c", "y"), _cut("rows_of_sin", "s")]
    types = _halved(_tables(*cuts, _negated("s", "z"), again="others"))
    assert types.count("Concat") == 1
    assert types.count("Slice") == 2


def _rows(*rest: onnx.NodeProto, **changed: tuple[Any, ...]) -> onnx_ir.Model:
    """cos and sin of positions × frequencies (1, rows, half), the axis of one row taken away."""
    nodes = [
        helper.make_node("Mul", ["rows", "frequencies"], ["angles"]),
        helper.make_node("Cos", ["angles"], ["cos"]),
        helper.make_node("Mul", ["cos", "scale"], ["scaled"]),
        helper.make_node("Gather", ["scaled", "zero"], ["rows_of_cos"], axis=0),
        helper.make_node("Sin", ["angles"], ["sin"]),
        helper.make_node("Gather", ["sin", "zero"], ["rows_of_sin"], axis=0),
        helper.make_node("Add", ["x", "rows_of_cos"], ["y"]),
        *(rest or [helper.make_node("Add", ["x", "rows_of_sin"], ["z"])]),
    ]
    known = dict.fromkeys(("angles", "cos", "scaled", "sin"), (1, _ROWS, _HALF)) | changed
    outputs = dict.fromkeys(("y", "z"), (None,) * 3)
    numbers = _NUMBERS | {"frequencies": np.linspace(0.1, 1, _HALF, dtype=np.float32)}
    return graph_of(nodes, {"x": (_ROWS, _HALF)}, outputs, numbers, known)


def _flattened(model: onnx_ir.Model) -> list[str]:
    """Types of nodes afterwards; what comes out is what came out before."""
    plain = onnx_ir.from_proto(copy.deepcopy(onnx_ir.to_proto(model)))
    flatten_tables(model.graph)
    x = np.random.default_rng(0).normal(size=(_ROWS, _HALF)).astype(np.float32)
    for one, other in zip(run_graph(model, {"x": x}), run_graph(plain, {"x": x}), strict=True):
        assert np.array_equal(one.reshape(other.shape), other)
    return node_types(model)


def test_an_axis_of_one_row_is_not_computed() -> None:
    model = _rows()
    assert "Gather" not in _flattened(model)
    assert model.graph.initializers["rows"].const_value.shape == (_ROWS, 1)


@pytest.mark.parametrize(
    "rest",
    [
        [helper.make_node("Add", ["x", "sin"], ["z"])],
        [
            helper.make_node("Gather", ["rows", "first"], ["s"]),
            helper.make_node("Neg", ["s"], ["z"]),
        ],
        [helper.make_node("Sum", ["rows", "x"], ["z"])],
        [helper.make_node("Gather", ["sin", "zero"], ["z"])],
        [helper.make_node("Identity", ["angles"], ["z"])],
    ],
    ids=["a table", "a row, not its axis", "positions", "what is put out", "angles"],
)
def test_an_axis_that_is_needed_stays(rest: list[onnx.NodeProto]) -> None:
    assert _flattened(_rows(*rest)).count("Gather") >= 2


def test_a_table_of_unknown_shape_stays() -> None:
    assert _flattened(_rows(angles=(None, _ROWS, _HALF))).count("Gather") == 2


def test_a_table_of_what_is_given_stays() -> None:
    cuts = [_cut("rows_of_cos", "c"), _negated("c", "y"), _cut("rows_of_sin", "s")]
    model = _tables(*cuts, _negated("s", "z"))
    flatten_tables(model.graph)
    assert node_types(model).count("Gather") == 2
