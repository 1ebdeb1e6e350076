"""Halves of tables that nothing reads go, in small graphs; what comes out stays the same."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import helper

from asvd_q_exporters.onnx.fused.tables import halve_tables
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
