"""The model's graph, traced over placeholders."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from asvd_q.errors import ExportError, first_line
from asvd_q_exporters.onnx.decoders import (
    AttentionForm,
    Decoder,
    Past,
    attention_form,
    example_inputs,
    example_past,
)
from asvd_q_exporters.onnx.fused.merge import Merged, merge_products
from asvd_q_exporters.onnx.fused.passes import drop_reshapes, expand_norms, fuse_residuals
from asvd_q_exporters.onnx.fused.tables import flatten_tables, halve_tables

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["Traced", "quiet", "trace"]

_BATCH, _NEW, _PAST, _ALL = "batch_size", "sequence_length", "past_sequence_length", "total_length"

_LARGEST_CONSTANT = 1024
"""Elements. Larger ones, such as tables of cosines, are computed when the file is loaded."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the tracer's warnings and log lines, which say nothing to a user."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@dataclass(frozen=True)
class Traced:
    """A graph without values.

    Attributes:
        model: its parameters are initializers without a value.
        merged: initializers that hold several parameters.
        attention: how it attends. Where that is fused, past and present may be the same memory,
            with room for more tokens than there are.
        longest: tokens that it takes at most; None where no table ends.
    """

    model: onnx_ir.Model
    merged: tuple[Merged, ...]
    attention: AttentionForm
    longest: int | None


def trace(
    model: Any,
    dtype: torch.dtype,
    opset: int,
    shared: Mapping[str, str],
    *,
    fused: bool,
    merge_whole: bool = False,
) -> Traced:
    """Trace a causal language model.

    Args:
        model: a Hugging Face model whose parameters may be placeholders.
        dtype: of keys and values.
        opset: of the standard operators.
        shared: names of parameters that are another one of the model → the name to keep.
        fused: use ONNX Runtime's own operators for more than one step at a time.
        merge_whole: as `merge_products` takes it; of fused graphs.

    Returns:
        The graph. Parameters have the names they have in `model`; inputs and outputs are named as
        optimum names them.

    Raises:
        ExportError: torch cannot trace this architecture.
    """
    parameters = {f"model.{name}" for name, _ in model.named_parameters(remove_duplicate=False)}
    past = example_past(model, dtype)
    form = attention_form(model, past) if fused else AttentionForm()
    attention = form.attention(model)
    with attention.installed() if attention else nullcontext():
        traced = _traced(Decoder(model, attention).eval(), past, opset)
    graph = traced.graph
    weights = [value for name, value in graph.initializers.items() if name in parameters]
    # As inputs the optimizer cannot fold them: a placeholder's value must not end up in a node.
    for value in weights:
        del graph.initializers[value.name]
        value.const_value = None
        graph.inputs.append(value)
    _optimize(traced)
    for value in weights:
        graph.inputs.remove(value)
    constants = list(graph.initializers.values())
    graph.initializers.clear()
    for value in [*weights, *constants]:
        name = value.name.removeprefix("model.")
        value.name = shared.get(name, name)  # the tracer keeps any one of a parameter's names
        graph.initializers[value.name] = value
    drop_reshapes(graph)
    merged: tuple[Merged, ...] = ()
    if fused:
        halve_tables(graph)
        flatten_tables(graph)
        fuse_residuals(graph)
        expand_norms(graph)
        merged = merge_products(graph, whole=merge_whole)
    _name_inputs_and_outputs(traced)
    _strip(traced)
    longest = attention.positions if attention is not None and form.rotary else None
    return Traced(traced, merged, form, longest)


def _traced(decoder: nn.Module, past: Past, opset: int) -> onnx_ir.Model:
    from torch.onnx import OnnxExporterError

    free = torch.export.Dim.DYNAMIC
    try:
        program = torch.onnx.export(
            decoder,
            example_inputs(past),
            dynamic_shapes=(
                *({0: free, 1: free} for _ in range(3)),
                [({0: free, 2: free}, {0: free, 2: free}) for _ in past],
            ),
            dynamo=True,
            opset_version=opset,
            optimize=False,
            verbose=False,
        )
    except OnnxExporterError as error:
        cause = _reason(error.__cause__ or error)
        raise ExportError(
            f"torch cannot trace this architecture to ONNX: {cause}; use the transformers format"
        ) from error
    assert program is not None
    return program.model


def _reason(error: BaseException) -> str:
    """The line of a tracer's error that says something: headings end with a colon."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.endswith(":")), first_line(error))


def _optimize(model: onnx_ir.Model) -> None:
    from onnxscript import optimizer

    optimizer.optimize(model, output_size_limit=_LARGEST_CONSTANT)


def _name_inputs_and_outputs(model: onnx_ir.Model) -> None:
    import onnx_ir

    graph = model.graph
    count = (len(graph.outputs) - 1) // 2
    layers = [f"{index}.{kind}" for index in range(count) for kind in ("key", "value")]
    tokens = {
        "input_ids": (_BATCH, _NEW),
        "attention_mask": (_BATCH, _ALL),
        "position_ids": (_BATCH, _NEW),
    }
    inputs = [*tokens, *(f"past_key_values.{layer}" for layer in layers)]
    outputs = ["logits", *(f"present.{layer}" for layer in layers)]
    for value, name in zip(list(graph.inputs), inputs, strict=True):
        value.name = name
        assert value.shape is not None
        dims = tokens.get(name, (_BATCH, value.shape[1], _PAST, value.shape[-1]))
        value.shape = onnx_ir.Shape(dims)
        if name == "position_ids" and not value.uses():
            graph.inputs.remove(value)  # the operator counts positions itself
    for value, name in zip(graph.outputs, outputs, strict=True):
        value.name = name
        assert value.shape is not None
        middle = (_NEW,) if name == "logits" else (value.shape[1], _ALL)
        value.shape = onnx_ir.Shape((_BATCH, *middle, value.shape[-1]))


def _strip(model: onnx_ir.Model) -> None:
    """Remove what the tracer notes about sources, paths and symbols: it is not the model."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    ends = {id(value) for value in model.graph.outputs}
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
            if id(value) not in ends:
                value.type = value.shape = None
