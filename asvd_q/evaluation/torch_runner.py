"""A transformers model behind the `Runner` protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from asvd_q.evaluation.padding import positions_behind

__all__ = ["TorchRunner"]


class TorchRunner:
    """Runs a causal language model of transformers that lies in memory.

    Args:
        model: any class with transformers' causal language model forward; set to eval mode.
        runtime: what computes the logits, with its version: "torch 2.13.0".
        device: where the model's weights are.
    """

    def __init__(
        self, model: PreTrainedModel, runtime: str, device: torch.device | str = "cpu"
    ) -> None:
        self.model = model.eval()
        self.runtime = runtime
        self.device = torch.device(device)

    @torch.inference_mode()
    def forward(
        self, input_ids: Tensor, cache: Any = None, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Logits float32 (batch, tokens, vocabulary) on the CPU, and the cache.

        Args:
            input_ids: int64 (batch, tokens).
            cache: a `DynamicCache` of an earlier call, which is extended in place.
            attention_mask: int64 (batch, tokens so far), 0 for padding on the left.
        """
        if cache is None:
            cache = DynamicCache(config=self.model.config)
        padding: dict[str, Tensor] = {}
        if attention_mask is not None:
            positions = positions_behind(attention_mask)[:, -input_ids.shape[1] :]
            padding = {
                "attention_mask": attention_mask.to(self.device),
                "position_ids": positions.to(self.device),
            }
        output = self.model(
            input_ids=input_ids.to(self.device), past_key_values=cache, use_cache=True, **padding
        )
        return output.logits.float().cpu(), output.past_key_values

    @torch.inference_mode()
    def score(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Logits of independent batches, in order; no cache is built."""
        for input_ids in batches:
            output = self.model(input_ids=input_ids.to(self.device), use_cache=False)
            yield output.logits.float().cpu()
