"""Codes that two operators want in different shapes, read in both from the same bytes.

In one file, an embedding's rows are a `Reshape` of the codes that a tied head reads. ONNX Runtime
computes it at load, which is a second copy in memory. Where weights lie outside the graph, an
initializer is a place in a file, and two may have the same one: then the head's copy in its own
layout is the only one, and rows are read from the mapped file.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir

__all__ = ["RowView", "take_row_views"]


@dataclass(frozen=True)
class RowView:
    """An initializer that has the bytes of another one.

    Attributes:
        name: of its own.
        source: the initializer whose bytes it has.
        shape: (rows, bytes of a row).
    """

    name: str
    source: str
    shape: tuple[int, int]


def take_row_views(graph: onnx_ir.Graph, sources: Collection[str]) -> list[RowView]:
    """Take every `Reshape` of an initializer whose rows are looked up out of the graph.

    The graph is changed: the lookup reads an initializer of the view's name, which is not there.

    Args:
        sources: names of initializers that may have a view.
    """
    views: list[RowView] = []
    for lookup in [node for node in graph if node.op_type == "GatherBlockQuantized"]:
        rows = lookup.inputs[0]
        reshape = None if rows is None else rows.producer()
        if rows is None or reshape is None or reshape.op_type != "Reshape":
            continue
        source, shape = reshape.inputs[0], reshape.inputs[1]
        if source is None or shape is None or source.name not in sources:
            continue
        assert source.shape is not None
        sizes = [int(size) for size in source.shape]
        view = RowView(f"{source.name}.rows", str(source.name), (sizes[0], math.prod(sizes[1:])))
        lookup.replace_input_with(0, onnx_ir.Value(name=view.name))
        graph.remove(reshape, safe=True)
        if shape.name in graph.initializers and not shape.uses():
            del graph.initializers[shape.name]
        views.append(view)
    return views
