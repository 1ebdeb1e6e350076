"""What a changed model loses against the dense one, from what enters the head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.hidden import HiddenStates

__all__ = ["Mean", "Metric", "Score"]

Metric = Literal["perplexity", "kl"]

_SLICE = 2**18
"""Logits that are measured at a time."""


class Score:
    """The metric, against the dense model.

    Attributes:
        dense: the dense model's own value.
    """

    def __init__(
        self,
        model: BlockwiseModel,
        outside: nn.Module,
        batches: Sequence[Tensor],
        metric: Metric,
        hidden: HiddenStates,
    ) -> None:
        """Args: hidden: what enters the dense model's head."""
        self._model = model
        self._outside = outside
        self._batches = batches
        self._hidden: HiddenStates | None = None
        self.dense = 0.0
        if metric == "kl":
            self._hidden = hidden
        else:
            mean = Mean()
            for position in range(len(batches)):
                mean.add(next(self.of(position, [hidden[position]])))
            self.dense = mean.value

    def of(self, position: int, candidates: Iterable[Tensor]) -> Iterator[Tensor]:
        """Values (windows, tokens − 1) of candidates' last hidden states, for one batch."""
        labels = self._batches[position][:, 1:]
        reference: list[Tensor] | None = None
        if self._hidden is not None:
            reference = [self._logits(window) for window in self._hidden[position]]
        for hidden in candidates:
            # A window at a time: logits of a whole batch can be larger than the model.
            values = []
            for number, window in enumerate(hidden):
                logits = self._logits(window)
                if reference is None:
                    values.append(_in_slices(_token_losses, logits, labels[number]))
                else:
                    values.append(_in_slices(_divergences, logits, reference[number]))
            yield torch.stack(values)

    def _logits(self, window: Tensor) -> Tensor:
        """Of all tokens but the last (tokens − 1, vocabulary), at least float32."""
        logits = self._model.logits(self._outside, window[None])[0, :-1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Next-token losses (tokens,), float64.

    The logarithm is taken in the logits' own precision: its rounding errors, 1e-6 at most, have
    no direction and vanish in the mean over tokens.
    """
    chosen = logits.gather(-1, labels.to(logits.device)[:, None])[:, 0]
    return logits.logsumexp(-1).double() - chosen.double()


def _divergences(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(p ‖ q) (tokens,), float64; p from the reference.

    Taken as Σ p (a − b) + log Σ eᵇ − log Σ eᵃ, with a and b the logits of p and q: what is small
    is then a sum of small terms, not a difference of large ones. A single token's value can be
    below 0 by a rounding error; set to 0 it would make the mean too large.
    """
    p = reference.softmax(-1)
    # Where p is 0 the term is 0, even if the logits are −infinity there. NaN stays.
    terms = torch.where(p == 0, 0.0, p * (reference - logits))
    expected = terms.sum(-1, dtype=torch.float64)
    return expected + logits.logsumexp(-1).double() - reference.logsumexp(-1).double()


def _in_slices(measure: Callable[[Tensor, Tensor], Tensor], one: Tensor, two: Tensor) -> Tensor:
    """A measure of (tokens, …) tensors, a few tokens at a time.

    Several times as fast on a CPU, where intermediate results then stay in cache.
    """
    step = max(_SLICE // one.shape[-1], 1) if one.device.type == "cpu" else len(one)
    pairs = zip(torch.split(one, step), torch.split(two, step), strict=True)
    return torch.cat([measure(*pair) for pair in pairs])


class Mean:
    """Mean of all values added."""

    def __init__(self) -> None:
        self._total = 0.0
        self._count = 0

    def add(self, values: Tensor) -> None:
        """Take in values of any shape."""
        self._total += float(values.double().sum())
        self._count += values.numel()

    @property
    def value(self) -> float:
        """Of all that was added."""
        return self._total / self._count
