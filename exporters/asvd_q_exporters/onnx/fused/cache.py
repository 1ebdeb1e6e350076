"""A cache for a model that is traced: keys and values are put together inside an operator."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = ["OperatorCache", "OperatorLayer"]


class OperatorLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's past, which `update` does not touch.

    Attributes:
        past: keys and values (batch, heads, past tokens or more, width).
        present: the same with the new tokens, once the operator has made them.
    """

    def __init__(self, past: tuple[Tensor, Tensor], cached: Any) -> None:
        super().__init__()
        self.past = past
        self.present: tuple[Tensor, Tensor] | None = None
        self._cached = cached
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the past is given."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The new keys and values alone."""
        return key_states, value_states

    def get_mask_sizes(self, query_length: Any) -> tuple[Any, int]:
        """Number of keys, past and new, and where they begin."""
        return self._cached + query_length, 0

    def get_seq_length(self) -> Any:
        """Tokens in the past, from the mask: the buffers may have room for more."""
        return self._cached

    def get_max_length(self) -> int:
        """There is no limit."""
        return -1


class OperatorCache(Cache):  # type: ignore[misc]
    """Remembers which layer was updated last: it is the one that attends next.

    Args:
        past: keys and values by layer.
        cached: number of tokens in them.
    """

    def __init__(self, past: list[tuple[Tensor, Tensor]], cached: Any) -> None:
        super().__init__(layers=[OperatorLayer(layer, cached) for layer in past])
        self.current: OperatorLayer | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The new keys and values of a layer, which is remembered."""
        layer: OperatorLayer = self.layers[layer_idx]
        self.current = layer
        return layer.update(key_states, value_states)
