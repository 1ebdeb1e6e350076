"""`com.microsoft::GroupQueryAttention` in place of transformers' attention functions.

Source: the operator's schema in ONNX Runtime; `AttentionInterface` and `AttentionMaskInterface` of
transformers, by which attention functions are replaced without touching a model's code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from asvd_q_exporters.onnx.fused.cache import OperatorCache
from asvd_q_exporters.onnx.fused.mask import lengths
from asvd_q_exporters.onnx.fused.rotary import (
    FUNCTION,
    RotaryTables,
    fits_operator,
    rotary_modules,
    rotation_files,
    rotation_kind,
)

__all__ = ["FusedAttention", "NotFusedError"]

_NAME = "asvd_q_operator"
_IMPLEMENTATION = "_attn_implementation_internal"
_WIDTH_MULTIPLE = 8
"""Of a head, that the runtime's kernel wants."""

_HARMLESS = {
    "position_ids",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "num_items_in_batch",
    "past_key_values",
    "position_embeddings",
    "layer_idx",
    "output_router_logits",
    "logits_to_keep",
    "is_causal",
}


class NotFusedError(Exception):
    """The model's attention is not what the operator computes; the message says why."""


@dataclass(frozen=True)
class _Window:
    """What stands for a mask: causal, and how far back it reaches (None: to the beginning)."""

    size: int | None


@dataclass(frozen=True)
class _Rotation:
    cos: Tensor
    sin: Tensor
    interleaved: bool
    states: Tensor


class FusedAttention:
    """Traces a model's attention into `GroupQueryAttention`.

    Used in `installed`; `begin` starts each forward pass.

    Args:
        model: whose attention functions are replaced.
        rotary: leave the rotation of queries and keys to the operator.

    Attributes:
        positions: tokens in the model's context; 0 where its configuration does not say.
        rotated: there was a rotation to leave.
    """

    def __init__(self, model: Any, *, rotary: bool) -> None:
        self.model = model
        config = model.config.get_text_config()
        self.positions = int(getattr(config, "max_position_embeddings", 0))
        self.rotary = rotary
        self._tables = RotaryTables(self.positions)
        self.rotated = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace attention, masks and rotations of the model while the context lasts."""
        with ExitStack() as stack:
            for mapping, function in (
                (ALL_ATTENTION_FUNCTIONS._global_mapping, self._attend),
                (ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, _mask),
            ):
                stack.enter_context(mock.patch.dict(mapping, {_NAME: function}))
            configs = {id(m.config): m.config for m in self.model.modules() if hasattr(m, "config")}
            for config in configs.values():
                stack.enter_context(mock.patch.object(config, _IMPLEMENTATION, _NAME))
            if self.rotary:
                self._leave_rotations(stack)
            yield

    def begin(
        self, input_ids: Tensor, attention_mask: Tensor, past: list[tuple[Tensor, Tensor]]
    ) -> OperatorCache:
        """Start a forward pass.

        Args:
            input_ids: (batch, new tokens).
            attention_mask: (batch, total tokens), 0 where a sequence is padded.
            past: keys and values by layer.
        """
        self._pending: dict[int, _Rotation] = {}
        self._tables.clear()
        self._lengths = lengths(input_ids, attention_mask, past[0][0].dtype)
        self.cache = OperatorCache(past, attention_mask.shape[1] - input_ids.shape[1])
        return self.cache

    def present(self) -> list[Tensor]:
        """Keys and values of every layer after the pass.

        Raises:
            NotFusedError: a layer did not attend.
        """
        layers = [layer.present for layer in self.cache.layers]
        if not layers or any(layer is None for layer in layers):
            raise NotFusedError("some of its layers do not call the function that attends")
        if self._pending:
            raise NotFusedError("rotated queries are changed before they attend")
        return [tensor for layer in layers for tensor in layer]

    def _leave_rotations(self, stack: ExitStack) -> None:
        modules = rotary_modules(self.model)
        if modules is None or (modules and not self.positions):
            raise NotFusedError("its rotary embedding fits no table")
        for file in rotation_files(self.model):
            rotation = self._rotation(getattr(file, FUNCTION))
            stack.enter_context(mock.patch.object(file, FUNCTION, rotation))
        for module in modules:
            forward = self._tables.replacement(module)
            stack.enter_context(mock.patch.object(module, "forward", forward))

    def _rotation(self, function: Any) -> Any:
        whole, part = rotation_kind(function), rotation_kind(function, part=True)

        def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *rest: Any) -> Any:
            if rest:
                raise NotFusedError("it rotates queries in a way of its own")
            width, rotated = int(query.shape[-1]), int(cos.shape[-1])
            if not fits_operator(width, rotated):
                raise NotFusedError("it rotates a part of its heads that the operator does not")
            kind = whole if rotated == width else part
            table = None if kind is None else self._tables.table(cos, sin, kind)
            if kind is None or table is None:
                raise NotFusedError("its rotary embedding fits no table")
            for states in (query, key):
                self._pending[id(states)] = _Rotation(*table, kind.interleaved, states)
            return query, key

        return rotate

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        layer = self.cache.current
        if layer is None or layer.present is not None:
            raise NotFusedError("its layers share their keys and values")
        if not isinstance(attention_mask, _Window):
            raise NotFusedError("its masks are more than causal")
        given = {name for name, value in kwargs.items() if value is not None}
        if not given <= _HARMLESS or s_aux is not None:
            raise NotFusedError("its attention has options of its own")
        if sliding_window is not None and sliding_window != attention_mask.size:
            raise NotFusedError("its masks and its attention disagree about the window")
        rotations = [self._pending.pop(id(states), None) for states in (query, key)]
        if (rotations[0] is None) != (rotations[1] is None):
            raise NotFusedError("it rotates queries and keys apart")
        batch, heads, new, width = query.shape
        kv_heads = key.shape[1]
        if value.shape != key.shape or key.shape[3] != width or width % _WIDTH_MULTIPLE:
            raise NotFusedError("its heads have widths that the operator does not take")
        rotation = rotations[0]
        self.rotated = self.rotated or rotation is not None
        tables = (None, None) if rotation is None else (rotation.cos, rotation.sin)
        attributes: dict[str, Any] = {
            "num_heads": heads,
            "kv_num_heads": kv_heads,
            "scale": width**-0.5 if scaling is None else float(scaling),
            "local_window_size": attention_mask.size or -1,
            "softcap": float(softcap or 0.0),
            "do_rotary": int(rotation is not None),
            "rotary_interleaved": int(rotation is not None and rotation.interleaved),
        }
        known = self._lengths
        total = known.bias.shape[-1]
        states = (part.transpose(1, 2).reshape(batch, new, -1) for part in (query, key, value))
        output, *present = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (*states, *layer.past, known.last, known.total, *tables, None, known.bias),
            attributes,
            dtypes=(query.dtype,) * 3,
            shapes=(
                (batch, new, heads * width),
                (batch, kv_heads, total, width),
                (batch, kv_heads, total, width),
            ),
            version=1,
        )
        layer.present = (present[0], present[1])
        return output.reshape(batch, new, heads, width), None


def _mask(
    *args: Any, mask_function: Any = None, local_size: int | None = None, **kwargs: Any
) -> Any:
    if kwargs.get("use_vmap") or (local_size is None and mask_function is not causal_mask_function):
        raise NotFusedError("its masks are more than causal")
    return _Window(local_size)
