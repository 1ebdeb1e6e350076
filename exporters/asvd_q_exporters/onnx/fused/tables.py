"""Tables of cosines and sines, computed in as few steps as can be.

The runtime computes them when it loads the file, and what it computes on the way stays in its
memory: for a long context that is more than the weights of a small model.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir

__all__ = ["flatten_tables", "halve_tables"]

_ELEMENTWISE = frozenset({"Cast", "Cos", "Sin"})
_ROW_RANK = 3
"""Of (1, positions, width)."""


def halve_tables(graph: onnx_ir.Graph) -> None:
    """Take away a repetition along the last axis of which only the first half is read.

    Transformers' rotary modules make angles twice, (…, θ, θ), of which the operator that rotates
    reads one θ.
    """
    for node in list(graph):
        half = _repeated(node)
        if half is None:
            continue
        cuts = list(_cuts(node.outputs[0], half.shape[-1]))
        if not cuts or any(cut is None for cut in cuts):
            continue
        node.outputs[0].replace_all_uses_with(half)
        graph.remove(node, safe=True)
        for cut in cuts:
            assert cut is not None
            assert cut.inputs[0] is not None
            cut.outputs[0].replace_all_uses_with(cut.inputs[0])
            graph.remove(cut, safe=True)


def flatten_tables(graph: onnx_ir.Graph) -> None:
    """Compute (positions, width) where (1, positions, width) is computed and its one row taken.

    The row is taken of the constants that a table is computed from, which are small.
    """
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Gather" and not node.domain else None
        if source is None or not _takes_first(node):
            continue
        chain = _computed(source)
        if chain is None:
            continue
        for value in chain:
            constant = value.const_value
            assert value.shape is not None
            value.shape = onnx_ir.Shape(list(value.shape)[1:])
            if constant is not None:
                value.const_value = onnx_ir.tensor(constant.numpy()[0], name=value.name)
        for reader in [user for value in chain for user, _ in value.uses()]:
            if reader.op_type == "Gather":
                table = reader.inputs[0]
                assert table is not None
                reader.outputs[0].replace_all_uses_with(table)
                graph.remove(reader, safe=True)


def _computed(table: onnx_ir.Value) -> list[onnx_ir.Value] | None:
    """All that is computed together with a table from constants, (1, …) each; these as well.

    None where a part is needed with its first axis, or is no constant.
    """
    found: dict[int, onnx_ir.Value] = {}
    waiting = [table]
    while waiting:
        value = waiting.pop()
        if id(value) in found:
            continue
        found[id(value)] = value
        producer = value.producer()
        sources = [] if producer is None else [one for one in producer.inputs if one is not None]
        readers = [user for user, _ in value.uses() if not _takes_first(user)]
        through = readers if producer is None else [*readers, producer]
        known = value.const_value is not None if producer is None else True
        ranks = [_ROW_RANK + 1 if one.shape is None else len(one.shape) for one in sources]
        if (
            not known
            or value.is_graph_output()
            or value.shape is None
            or len(value.shape) != _ROW_RANK
            or value.shape[0] != 1
            or any(rank > _ROW_RANK for rank in ranks)
            or not all(_is_elementwise(node) for node in through)
        ):
            return None
        waiting += [one for one, rank in zip(sources, ranks, strict=True) if rank == _ROW_RANK]
        waiting += [node.outputs[0] for node in readers]
    return list(found.values())


def _is_elementwise(node: onnx_ir.Node) -> bool:
    return not node.domain and (node.op_type in _ELEMENTWISE or node.op_type == "Mul")


def _takes_first(node: onnx_ir.Node) -> bool:
    """Whether a node leaves the one row of an axis of one row, and the axis out."""
    if node.op_type != "Gather" or node.domain or node.inputs[1] is None:
        return False
    if node.outputs[0].is_graph_output():
        return False
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    index = node.inputs[1]
    return axis == 0 and _constant(index) == [0] and index.shape is not None and not index.shape


def _repeated(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """What a node puts behind itself along the last axis, of known width."""
    if node.op_type != "Concat" or node.domain or len(node.inputs) != 2:
        return None
    one, other = node.inputs
    if one is None or one is not other or one.shape is None:
        return None
    axis, width = node.attributes["axis"].as_int(), one.shape[-1]
    return one if isinstance(width, int) and axis in (-1, len(one.shape) - 1) else None


def _cuts(value: onnx_ir.Value, half: int) -> Iterator[onnx_ir.Node | None]:
    """The slices that leave the first half of what is computed from a value, element by element.

    None stands for a reader that is something else.
    """
    if value.is_graph_output():
        yield None
    for user, index in value.uses():
        if user.domain:
            yield None
        elif user.op_type == "Slice" and index == 0:
            yield user if _is_first_half(user, half) else None
        elif user.op_type in _ELEMENTWISE or _keeps_rows(user, index):
            yield from _cuts(user.outputs[0], half)
        else:
            yield None


def _keeps_rows(node: onnx_ir.Node, index: int) -> bool:
    """Scaled by a number, or one of the first axis picked; rows stay what they are."""
    if index != 0 or len(node.inputs) < 2:
        return False
    other = _constant(node.inputs[1])
    if other is None or len(other) != 1:
        return False
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if node.op_type == "Gather":
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        return shape is not None and axis == 0 and len(shape) > 1
    return bool(node.op_type == "Mul")


def _is_first_half(node: onnx_ir.Node, half: int) -> bool:
    source = node.inputs[0]
    if source is None or source.shape is None or len(node.inputs) not in (4, 5):
        return False
    starts, ends, axes, *steps = (_constant(value) for value in node.inputs[1:])
    last = len(source.shape) - 1
    return (
        starts == [0]
        and ends == [half]
        and axes in ([-1], [last])
        and all(step == [1] for step in steps)
    )


def _constant(value: onnx_ir.Value | None) -> list[float] | None:
    """Its numbers, where they are known."""
    if value is None or value.const_value is None:
        return None
    numbers: list[float] = value.const_value.numpy().reshape(-1).tolist()
    return numbers
