"""Changes to a traced graph that leave what it computes as it is."""

from __future__ import annotations

import onnx_ir

__all__ = ["drop_reshapes", "expand_norms", "fuse_residuals", "remove_unused"]

_CONTRIB = "com.microsoft"


def drop_reshapes(graph: onnx_ir.Graph) -> None:
    """Remove reshapes that lead back to the shape that a chain of them began with.

    Shapes are compared as the tracer has them, with the same names for the same sizes.
    """
    for node in list(graph):
        if not _is_reshape(node):
            continue
        source = node.inputs[0]
        while source is not None and not _same_shape(source, node.outputs[0]):
            before = source.producer()
            source = before.inputs[0] if before is not None and _is_reshape(before) else None
        if source is not None and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(source)
    remove_unused(graph)


def fuse_residuals(graph: onnx_ir.Graph) -> None:
    """A sum and the RMS norm of it become one node, which puts out both."""
    for node in list(graph):
        if node.op_type != "SimplifiedLayerNormalization":
            continue
        total = node.inputs[0]
        add = None if total is None else total.producer()
        if add is None or add.op_type != "Add" or total.is_graph_output():
            continue
        if not all(value is not None and _same_shape(value, total) for value in add.inputs):
            continue
        if total.shape is None or len(total.shape) != 3:
            continue
        fused = onnx_ir.Node(
            _CONTRIB,
            "SkipSimplifiedLayerNormalization",
            inputs=[*add.inputs, node.inputs[1]],
            attributes=[onnx_ir.AttrFloat32("epsilon", node.attributes["epsilon"].as_float())],
            num_outputs=4,
            version=1,
        )
        normed, mean, deviation, summed = fused.outputs
        mean.name = deviation.name = ""  # not asked for
        normed.name, summed.name = f"{node.outputs[0].name}_fused", f"{total.name}_fused"
        for old, new in ((node.outputs[0], normed), (total, summed)):
            new.shape, new.type = old.shape, old.type
            old.replace_all_uses_with(new)
        graph.insert_after(add, fused)
        graph.remove([node, add], safe=True)
        if not summed.uses():
            summed.name = ""  # after the last block
        graph.opset_imports.setdefault(_CONTRIB, 1)
    graph.sort()  # a scale that is computed, as 1 + w is, may come behind the sum


def expand_norms(graph: onnx_ir.Graph) -> None:
    """Write RMS norms in standard operators, in the one way that the runtime knows as a norm.

    The operator that it makes of them when it loads the file is in no published set, so that
    ONNX's own checker refuses it.
    """
    for node in list(graph):
        if node.op_type == "SimplifiedLayerNormalization":
            tape = onnx_ir.tape.Tape()
            output = _written_out(tape, node)
            output.shape, output.type = node.outputs[0].shape, node.outputs[0].type
            node.outputs[0].replace_all_uses_with(output)
            graph.insert_before(node, tape.nodes)
            for value in tape.initializers:
                graph.initializers[value.name] = value
            graph.remove(node, safe=True)


def _written_out(tape: onnx_ir.tape.Tape, node: onnx_ir.Node) -> onnx_ir.Value:
    """x / √(mean(x²) + ε) · w."""
    x, scale = node.inputs
    assert x is not None
    name, dtype = node.outputs[0].name, x.dtype
    epsilon = node.attributes["epsilon"].as_float()
    two = tape.initializer(onnx_ir.tensor(2.0, dtype, name=f"{name}_two"))
    least = tape.initializer(onnx_ir.tensor(epsilon, dtype, name=f"{name}_epsilon"))
    axis = tape.initializer(onnx_ir.tensor([-1], name=f"{name}_axis"))
    mean = tape.op("ReduceMean", [tape.op("Pow", [x, two]), axis], {"keepdims": 1})
    root = tape.op("Sqrt", [tape.op("Add", [mean, least])])
    return tape.op("Mul", [tape.op("Div", [x, root]), scale])


def remove_unused(graph: onnx_ir.Graph) -> None:
    """Remove nodes that nothing reads."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)


def _is_reshape(node: onnx_ir.Node) -> bool:
    return bool(node.op_type == "Reshape" and not node.domain)


def _same_shape(one: onnx_ir.Value, other: onnx_ir.Value) -> bool:
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return False
    return all(
        a == b and (isinstance(a, int) or a.value is not None)
        for a, b in zip(one.shape, other.shape, strict=True)
    )
