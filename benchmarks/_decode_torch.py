"""A checkpoint in transformers, in float32 on the CPU; a `Decoder`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._decode_driver import Ids

__all__ = ["TorchDecoder"]


class TorchDecoder:
    """Keeps the cache that transformers makes.

    Attributes:
        vocabulary: number of logits.
    """

    def __init__(self, folder: Path, *, threads: int) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True
        ).eval()
        self.vocabulary = int(self._model.config.vocab_size)
        self._cache: Any = None

    def prefill(self, ids: Ids, room: int) -> Ids:
        """See `Decoder.prefill`; the cache grows as it must."""
        self._cache = None
        return self.step(ids)

    @torch.inference_mode()
    def step(self, tokens: Ids) -> Ids:
        """See `Decoder.step`."""
        ids = torch.from_numpy(tokens)
        output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True)
        self._cache = output.past_key_values
        logits: Tensor = output.logits
        best: Ids = logits[:, -1:].argmax(-1).numpy()
        return best
