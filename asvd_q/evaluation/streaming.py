"""A Runner for models that do not fit: one block's weights in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.hidden import HiddenStates

__all__ = ["StreamingRunner"]


class StreamingRunner:
    """Logits from a blockwise model, all batches of a call in one pass over the weights.

    There is no key-value cache: `forward` runs the whole sequence again at every step, which is
    right and slow. Its cache is the tokens so far.
    """

    def __init__(self, model: BlockwiseModel, folder: Path | None = None) -> None:
        """Args: folder: keeps hidden states on disk instead of in memory."""
        self.runtime = f"torch {torch.__version__} {model.device.type}, block by block"
        self._model = model
        self._folder = folder

    @torch.no_grad()
    def score(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """See `asvd_q.artefact.Runner`; every block is loaded once for all batches."""
        hidden = HiddenStates(self._folder)
        with self._model.outside() as outside:
            for batch in batches:
                hidden.append(self._model.embed(outside, batch))
            for index in range(len(self._model)):
                block = self._model.load_block(index)
                self._model.advance(block, index, hidden)
                del block
            for position in range(len(hidden)):
                yield self._model.logits(outside, hidden[position]).float().cpu()

    def forward(
        self,
        input_ids: Tensor,
        cache: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `asvd_q.artefact.Runner`; the cache is all tokens so far, which are run again."""
        tokens = input_ids if cache is None else torch.cat([cache, input_ids], dim=1)
        new = input_ids.shape[1]
        if attention_mask is None:
            (logits,) = self.score([tokens])
            return logits[:, -new:], tokens
        # Blocks are run without a mask: each row goes through them alone, without its padding.
        rows = [row[mask.bool()][None] for row, mask in zip(tokens, attention_mask, strict=True)]
        found = [logits[0, -new:] for logits in self.score(rows)]
        # Zeros where this call's tokens are padding.
        padded = [pad(logits, (0, 0, new - len(logits), 0)) for logits in found]
        return torch.stack(padded), tokens
