"""The model's graph, traced over placeholders."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from asvd_q.errors import ExportError, first_line

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["example_past", "quiet", "trace"]

_BATCH, _NEW, _PAST, _ALL = "batch_size", "sequence_length", "past_sequence_length", "total_length"


class _Decoder(nn.Module):
    """A causal model as a function of tokens and past keys and values."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        cache = DynamicCache(past)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        present = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return (output.logits, *present)


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


def trace(model: Any, dtype: torch.dtype, opset: int, shared: Mapping[str, str]) -> onnx_ir.Model:
    """Trace a causal language model.

    Args:
        model: a Hugging Face model whose parameters may be placeholders.
        dtype: of keys and values.
        opset: of the standard operators.
        shared: names of parameters that are another one of the model → the name to keep.

    Returns:
        The graph. Its parameters are initializers without a value, under the names they have
        in `model`; its inputs and outputs are named as optimum names them.

    Raises:
        ExportError: torch cannot trace this architecture.
    """
    parameters = {f"model.{name}" for name, _ in model.named_parameters(remove_duplicate=False)}
    traced = _traced(_Decoder(model).eval(), example_past(model, dtype), opset)
    weights = [value for name, value in traced.graph.initializers.items() if name in parameters]
    # As inputs the optimizer cannot fold them: a placeholder's value must not end up in a node.
    for value in weights:
        del traced.graph.initializers[value.name]
        value.const_value = None
        traced.graph.inputs.append(value)
    _optimize(traced)
    for value in weights:
        traced.graph.inputs.remove(value)
    constants = list(traced.graph.initializers.values())
    traced.graph.initializers.clear()
    for value in [*weights, *constants]:
        name = value.name.removeprefix("model.")
        value.name = shared.get(name, name)  # the tracer keeps any one of a parameter's names
        traced.graph.initializers[value.name] = value
    _name_inputs_and_outputs(traced)
    _strip(traced)
    return traced


def example_past(model: Any, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Example keys and values: (batch 2, heads, past 3, width of a head) of every block.

    Seen on a run without values: configurations do not all say how many heads are cached.

    Raises:
        ExportError: it fails, or computes what ONNX Runtime has no kernels for.
    """
    from torch._subclasses import FakeTensorMode
    from transformers import DynamicCache

    cache = DynamicCache()
    # Rotary embeddings keep what they compute: that must not stay in the model that is traced.
    model = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    half = _InBfloat16()  # type: ignore[no-untyped-call]
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), half:
            tokens = torch.zeros((2, 3), dtype=torch.int64)
            model(input_ids=tokens, past_key_values=cache, use_cache=True)
        past = [
            tuple(torch.zeros(part.shape, dtype=dtype) for part in (layer.keys, layer.values))
            for layer in cache.layers
        ]
    except Exception as error:  # whatever a model does without values, or with this cache
        raise ExportError(
            f"it does not run without values, so that it cannot be traced: {first_line(error)}"
        ) from error
    if half.found is not None:
        raise ExportError(
            f"it computes {half.found} in bfloat16 whatever its own type, which ONNX Runtime does "
            "not do on a CPU"
        )
    return [(keys, values) for keys, values in past]


class _InBfloat16(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the first operator that computes in bfloat16; casts and views do not."""

    found: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        computes = not func.is_view and func.overloadpacket not in _CASTS
        reads = any(map(_is_bfloat16, args))
        if self.found is None and computes and reads and _is_bfloat16(result):
            self.found = func.overloadpacket.__name__
        return result


_CASTS = {torch.ops.aten._to_copy, torch.ops.aten.clone, torch.ops.aten._unsafe_view}


def _is_bfloat16(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16


def _traced(decoder: nn.Module, past: list[tuple[Tensor, Tensor]], opset: int) -> onnx_ir.Model:
    from torch.onnx import OnnxExporterError

    free = torch.export.Dim.DYNAMIC
    tokens = torch.zeros((2, 2), dtype=torch.int64)
    try:
        program = torch.onnx.export(
            decoder,
            (tokens, torch.ones((2, 5), dtype=torch.int64), tokens.clone(), past),
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

    optimizer.optimize(model)


def _name_inputs_and_outputs(model: onnx_ir.Model) -> None:
    import onnx_ir

    count = (len(model.graph.outputs) - 1) // 2
    layers = [f"{index}.{kind}" for index in range(count) for kind in ("key", "value")]
    tokens = {
        "input_ids": (_BATCH, _NEW),
        "attention_mask": (_BATCH, _ALL),
        "position_ids": (_BATCH, _NEW),
    }
    inputs = [*tokens, *(f"past_key_values.{layer}" for layer in layers)]
    outputs = ["logits", *(f"present.{layer}" for layer in layers)]
    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = name
        assert value.shape is not None
        dims = tokens.get(name, (_BATCH, value.shape[1], _PAST, value.shape[-1]))
        value.shape = onnx_ir.Shape(dims)
    for value, name in zip(model.graph.outputs, outputs, strict=True):
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
