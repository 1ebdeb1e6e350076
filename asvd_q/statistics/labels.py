"""The loss whose gradient tells how much an error at a layer's output matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from asvd_q.statistics.sampling import draw_tokens

__all__ = ["Labels", "NextTokenLoss"]

Labels = Literal["corpus", "sampled"]


class NextTokenLoss:
    """The summed next-token loss of a window, for `backward_through_head`.

    Sampled labels are drawn from the model's own distribution; they do not depend on how windows
    are batched, as long as these come in order.
    """

    def __init__(self, batches: Sequence[Tensor], labels: Labels, seed: int) -> None:
        """Args: batches: int64 (windows, tokens) each."""
        self._batches = batches
        self._labels = labels
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, position: int, number: int, logits: Tensor) -> Tensor:
        """Of one window, nats.

        Args:
            position: of its batch.
            number: of the window in it.
            logits: (tokens, vocabulary), of all its tokens; the last one predicts nothing.
        """
        logits = logits[:-1].float()
        if self._labels == "corpus":
            labels = self._batches[position][number, 1:].to(logits.device)
        else:
            numbers = torch.rand(len(logits), generator=self._generator)
            labels = draw_tokens(logits.detach(), numbers)
        return nn.functional.cross_entropy(logits, labels, reduction="sum")
