"""Perplexity: the exponential of the mean next-token loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from asvd_q.errors import NumericsError

__all__ = ["PerplexityMeter", "token_nll"]


def token_nll(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Negative log-likelihood of every token given those before it, in nats.

    Args:
        logits: (batch, tokens, vocabulary), floating point.
        input_ids: int64 (batch, tokens); token t + 1 is scored by the logits at t.

    Returns:
        float64 (batch, tokens − 1), on the logits' device.
    """
    # A sequence at a time: float64 logits of a whole batch can be larger than the model.
    return torch.stack(
        [_nll(row[:-1], ids[1:]) for row, ids in zip(logits, input_ids, strict=True)]
    )


def _nll(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.double()
    chosen = logits.gather(-1, labels.to(logits.device).unsqueeze(-1)).squeeze(-1)
    return logits.logsumexp(-1) - chosen


class PerplexityMeter:
    """Sums losses over batches.

    Attributes:
        nll: sum of the losses, in nats.
        tokens: number of losses in it.
    """

    def __init__(self) -> None:
        self.nll = 0.0
        self.tokens = 0

    def update(self, nll: Tensor) -> None:
        """Add losses of any shape, as `token_nll` returns them.

        Raises:
            NumericsError: one of them is NaN.
        """
        total = float(nll.double().sum())
        if math.isnan(total):
            raise NumericsError("the model gives NaN logits, so its perplexity is not defined")
        self.nll += total
        self.tokens += nll.numel()

    @property
    def mean_nll(self) -> float:
        """Nats per token.

        Raises:
            ValueError: nothing was added.
        """
        if self.tokens == 0:
            raise ValueError("no tokens were scored")
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean loss; infinity where that overflows."""
        try:
            return math.exp(self.mean_nll)
        except OverflowError:
            return math.inf
