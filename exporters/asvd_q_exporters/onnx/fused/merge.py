"""Products with the same input become one, where that saves time.

Queries, keys and values that attention reads as they are come from one product then, and so do the
B x of factors that read the same x. Other matrices of codes, gate and up among them, are merged
where it is asked for: rows are split afterwards, which takes less than another product's rounding
of x and its threads' start, but the results of a long prompt are held twice. A matrix product is
computed row by row, so the results are the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import onnx_ir

from asvd_q_exporters.onnx.fused.passes import remove_unused

__all__ = ["Merged", "merge_products"]

_FACTOR = ".BLinear"
_ATTENTION = "GroupQueryAttention"


@dataclass(frozen=True)
class Merged:
    """Products that became one.

    Attributes:
        name: of the product: initializers are called `name.part`.
        members: the names of those it stands for → first row of each, and the one after its last.
        tensors: initializer of the product → those of its members, and the axis along which it
            holds them.
    """

    name: str
    members: dict[str, tuple[int, int]]
    tensors: dict[str, tuple[tuple[str, ...], int]]


@dataclass(frozen=True)
class _Product:
    node: onnx_ir.Node
    name: str
    rows: int


def merge_products(graph: onnx_ir.Graph, *, whole: bool = False) -> tuple[Merged, ...]:
    """Merge what can be merged in place; returns what became of which initializers.

    Args:
        whole: merge matrices of codes that are no factors, too, where their rows have to be split.
    """
    products = [product for node in graph if (product := _product(node)) is not None]
    outputs = {id(product.node.outputs[0]): product for product in products}
    merged: list[Merged] = []
    for node in list(graph):
        if node.op_type == _ATTENTION:
            sources = [outputs.get(id(value)) for value in node.inputs[:3]]
            read = [product for product in sources if product is not None and _only_use(product)]
            if len(read) == len(sources) and _alike(read):
                one, output = _merge(graph, read)
                merged.append(one)
                for index, value in enumerate((output, None, None)):  # packed
                    node.replace_input_with(index, value)
    alike: dict[object, list[_Product]] = defaultdict(list)
    for product in products:
        if _may_be_split(product, whole):
            alike[id(product.node.inputs[0]), _settings(product)].append(product)
    for group in alike.values():
        if len(group) > 1:
            one, output = _merge(graph, group)
            merged.append(one)
            _split(graph, output, group)
    remove_unused(graph)
    return tuple(merged)


def _product(node: onnx_ir.Node) -> _Product | None:
    """A node that multiplies with a weight."""
    if node.op_type not in ("MatMulNBits", "MatMul") or len(node.inputs) < 2:
        return None
    weights = [value for value in node.inputs[1:] if value is not None]
    if not all(value.is_initializer() and value.const_value is None for value in weights):
        return None
    name = weights[0].name.rpartition(".")[0]
    if any(value.name.rpartition(".")[0] != name for value in weights):
        return None
    if node.op_type == "MatMul":
        return _Product(node, name, int(weights[0].shape[1]))
    return _Product(node, name, node.attributes["N"].as_int())


def _only_use(product: _Product) -> bool:
    return len(product.node.outputs[0].uses()) == 1


def _may_be_split(product: _Product, whole: bool) -> bool:
    """Whole matrices of floats are left: they are read for longer than a product takes to start."""
    output = product.node.outputs[0]
    coded = product.node.op_type == "MatMulNBits"
    worth = product.name.endswith(_FACTOR) or (whole and coded)
    return worth and bool(output.uses()) and not output.is_graph_output()


def _settings(product: _Product) -> tuple[object, ...]:
    node = product.node
    attributes = {name: one.value for name, one in node.attributes.items() if name != "N"}
    parts = tuple(
        None if value is None else value.name.rpartition(".")[2] for value in node.inputs[1:]
    )
    return (node.op_type, tuple(sorted(attributes.items())), parts)


def _alike(group: Sequence[_Product]) -> bool:
    return (
        len({id(product.node.inputs[0]) for product in group}) == 1
        and len({_settings(product) for product in group}) == 1
        and len({id(product.node) for product in group}) == len(group)
    )


def _merge(graph: onnx_ir.Graph, group: Sequence[_Product]) -> tuple[Merged, onnx_ir.Value]:
    first = group[0].node
    rows = tuple(product.rows for product in group)
    members = tuple(product.name for product in group)
    name = _common_name(members)
    axis = 1 if first.op_type == "MatMul" else 0
    inputs: list[onnx_ir.Value | None] = [first.inputs[0]]
    tensors: dict[str, tuple[tuple[str, ...], int]] = {}
    for values in zip(*(product.node.inputs[1:] for product in group), strict=True):
        if values[0] is None:
            inputs.append(None)
            continue
        shape = list(values[0].shape)
        shape[axis] = sum(value.shape[axis] for value in values)
        value = onnx_ir.Value(
            name=f"{name}.{values[0].name.rpartition('.')[2]}",
            shape=onnx_ir.Shape(shape),
            type=values[0].type,
        )
        graph.initializers[value.name] = value
        tensors[value.name] = (tuple(value.name for value in values), axis)
        inputs.append(value)
        for old in values:
            graph.initializers.pop(old.name, None)
    attributes = [
        onnx_ir.AttrInt64("N", sum(rows)) if key == "N" else one
        for key, one in first.attributes.items()
    ]
    node = onnx_ir.Node(
        first.domain, first.op_type, inputs=inputs, attributes=attributes, version=first.version
    )
    output = node.outputs[0]
    output.name = f"{first.outputs[0].name}_merged"
    output.type = first.outputs[0].type
    graph.insert_before(first, node)
    ends = list(accumulate(rows))
    within = dict(zip(members, zip([0, *ends], ends, strict=False), strict=True))
    return Merged(name, within, tensors), output


def _split(graph: onnx_ir.Graph, output: onnx_ir.Value, group: Sequence[_Product]) -> None:
    """Give every member's readers its part of the output."""
    node = output.producer()
    assert node is not None
    sizes = onnx_ir.Value(name=f"{output.name}_sizes")
    sizes.const_value = onnx_ir.tensor([product.rows for product in group], name=sizes.name)
    sizes.shape, sizes.type = sizes.const_value.shape, onnx_ir.TensorType(onnx_ir.DataType.INT64)
    graph.initializers[sizes.name] = sizes
    split = onnx_ir.Node(
        "",
        "Split",
        inputs=[output, sizes],
        attributes=[onnx_ir.AttrInt64("axis", -1)],
        num_outputs=len(group),
    )
    graph.insert_after(node, split)
    for index, (product, part) in enumerate(zip(group, split.outputs, strict=True)):
        old = product.node.outputs[0]
        part.name = f"{output.name}_{index}"
        part.type, part.shape = old.type, old.shape
        old.replace_all_uses_with(part)


def _common_name(members: Sequence[str]) -> str:
    """`block.q_proj` and `block.k_proj` become `block.q_proj+k_proj`."""
    parts = [name.split(".") for name in members]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    joined = "+".join(".".join(part[shared:]) for part in parts)
    return ".".join([*parts[0][:shared], joined])
