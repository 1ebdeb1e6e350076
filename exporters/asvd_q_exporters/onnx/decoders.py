"""A causal model as a function of tokens and past keys and values, which is what is traced."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from asvd_q.errors import ExportError, first_line
from asvd_q_exporters.onnx.fused import FusedAttention
from asvd_q_exporters.onnx.fused.rotary import frequency_kinds

__all__ = [
    "AttentionForm",
    "Decoder",
    "Past",
    "attention_form",
    "example_inputs",
    "example_past",
]

Past = list[tuple[Tensor, Tensor]]
"""Keys and values (batch, heads, past tokens, width of a head) by layer."""


class Decoder(nn.Module):
    """Logits of new tokens, and keys and values of all.

    Args:
        attention: which puts attention into an operator; None to trace it as it is.
    """

    def __init__(self, model: nn.Module, attention: FusedAttention | None = None) -> None:
        super().__init__()
        self.model = model
        self._attention = attention

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: Past
    ) -> tuple[Tensor, ...]:
        """Logits, then keys and values of every layer, those of the new tokens included.

        Args:
            input_ids, position_ids: (batch, tokens), of new tokens.
            attention_mask: (batch, past and new tokens).
        """
        from transformers import DynamicCache

        attention = self._attention
        cache = (
            attention.begin(input_ids, attention_mask, past) if attention else DynamicCache(past)
        )
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        if attention:
            return (output.logits, *attention.present())
        present = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return (output.logits, *present)


def example_inputs(past: Past) -> tuple[Tensor, Tensor, Tensor, Past]:
    """Inputs of a decoder, two new tokens: ids, mask, positions and the past."""
    batch, _, cached, _ = past[0][0].shape
    tokens = torch.zeros((batch, 2), dtype=torch.int64)
    return tokens, torch.ones((batch, cached + 2), dtype=torch.int64), tokens.clone(), past


def example_past(model: Any, dtype: torch.dtype) -> Past:
    """Example keys and values: (batch 2, heads, past 3, width of a head) of every block.

    Seen on a run without values: configurations do not all say how many heads are cached.

    Raises:
        ExportError: it fails, or computes what ONNX Runtime has no kernels for.
    """
    from transformers import DynamicCache

    if "dynamic" in frequency_kinds(model):
        raise ExportError(
            "its rotary embedding (rope_type: dynamic) computes other frequencies for every length "
            "of text, which is not traced"
        )
    cache = DynamicCache()
    half = _InBfloat16()  # type: ignore[no-untyped-call]
    try:
        copied = _copied(model)
        with _without_values(), half:
            tokens = torch.zeros((2, 3), dtype=torch.int64)
            copied(input_ids=tokens, past_key_values=cache, use_cache=True)
        shapes = [(layer.keys.shape, layer.values.shape) for layer in cache.layers]
    except Exception as error:  # whatever a model does without values, or with this cache
        raise ExportError(
            f"it does not run without values, so that it cannot be traced: {first_line(error)}"
        ) from error
    if half.found is not None:
        raise ExportError(
            f"it computes {half.found} in bfloat16 whatever its own type, which ONNX Runtime does "
            "not do on a CPU"
        )
    return [(torch.zeros(one, dtype=dtype), torch.zeros(two, dtype=dtype)) for one, two in shapes]


@dataclass(frozen=True)
class AttentionForm:
    """How a model attends in a graph.

    Attributes:
        fused: in an operator that also keeps keys and values.
        rotary: that operator rotates queries and keys too.
        reads_positions: the graph has use for the positions of tokens.
    """

    fused: bool = False
    rotary: bool = False
    reads_positions: bool = True

    def attention(self, model: Any) -> FusedAttention | None:
        """What traces it so."""
        return FusedAttention(model, rotary=self.rotary) if self.fused else None


def attention_form(model: Any, past: Past) -> AttentionForm:
    """The fastest form that fits the model.

    Found out in runs without values, first with rotations left to the operator, then without.
    """
    for rotary in (True, False):
        inputs = example_inputs(past)
        reads = _Reads(inputs[2])
        try:
            attention = FusedAttention(_copied(model), rotary=rotary)
            with attention.installed(), _without_values(), reads:
                Decoder(attention.model, attention)(*inputs)
        except Exception:  # a model fails in ways of its own where it gets no masks
            continue
        return AttentionForm(fused=True, rotary=attention.rotated, reads_positions=reads.found)
    return AttentionForm()


def _copied(model: Any) -> Any:
    """With the same parameters: rotary embeddings keep what they compute, and the model that is
    traced must not."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


@contextmanager
def _without_values() -> Iterator[None]:
    """Models compute shapes alone."""
    from torch._subclasses import FakeTensorMode

    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        yield


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Whether an operator reads a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tensor = tensor
        self.found = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.found = self.found or any(one is self._tensor for one in args)
        return func(*args, **(kwargs or {}))


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
