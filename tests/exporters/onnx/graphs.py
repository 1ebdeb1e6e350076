"""Graphs of a few nodes, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from asvd_q_exporters.onnx.session import PROVIDERS, session_options

__all__ = ["Array", "Shapes", "graph_of", "node_types", "run_graph"]

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[Any, ...]]


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Shapes,
    outputs: Shapes,
    initializers: Mapping[str, Array],
    values: Shapes | None = None,
    *,
    integers: Sequence[str] = (),
) -> onnx_ir.Model:
    """A graph in float32.

    Args:
        values: shapes of what lies between.
        integers: inputs that are int32.
    """

    def infos(shapes: Shapes) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                name, TensorProto.INT32 if name in integers else TensorProto.FLOAT, shape
            )
            for name, shape in shapes.items()
        ]

    graph = helper.make_graph(
        list(nodes),
        "small",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
        value_info=infos(values or {}),
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnx_ir.from_proto(proto)


def node_types(model: onnx_ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run_graph(
    model: onnx_ir.Model, feeds: Mapping[str, Array], *, optimized: bool = True
) -> list[Array]:
    """Outputs of a graph.

    Args:
        optimized: let the runtime change the graph when it loads it.
    """
    options = session_options()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        onnx_ir.to_proto(model).SerializeToString(), options, providers=PROVIDERS
    )
    found: list[Array] = session.run(None, dict(feeds))
    return found
