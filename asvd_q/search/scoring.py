"""What a changed model loses against the dense one, from what enters the head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from asvd_q.metrics import kl_divergence, token_nll
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
        batch = self._batches[position]
        reference: list[Tensor] | None = None
        if self._hidden is not None:
            reference = [self._logits(window) for window in self._hidden[position]]
        for hidden in candidates:
            # A window at a time: logits of a whole batch can be larger than the model.
            values = []
            for number, window in enumerate(hidden):
                logits = self._logits(window)
                if reference is None:
                    values.append(_in_slices(token_nll, logits, batch[number, None], overlap=1))
                else:
                    dense = reference[number][:, :-1]
                    values.append(_in_slices(kl_divergence, dense, logits[:, :-1], overlap=0))
            yield torch.cat(values)

    def _logits(self, window: Tensor) -> Tensor:
        return self._model.logits(self._outside, window[None])


def _in_slices(
    measure: Callable[[Tensor, Tensor], Tensor], one: Tensor, two: Tensor, *, overlap: int
) -> Tensor:
    """A measure of (1, tokens, …) tensors, a few tokens at a time.

    Four times as fast on a CPU, where the float64 copies then stay in cache.

    Args:
        overlap: how many tokens more than values the measure takes.
    """
    count = one.shape[1] - overlap
    step = max(_SLICE // one.shape[-1], 1) if one.device.type == "cpu" else count
    return torch.cat(
        [
            measure(one[:, start : start + step + overlap], two[:, start : start + step + overlap])
            for start in range(0, count, step)
        ],
        dim=1,
    )


class Mean:
    """Mean of all values added."""

    def __init__(self) -> None:
        self._total = 0.0
        self._count = 0

    def add(self, values: Tensor) -> None:
        self._total += float(values.double().sum())
        self._count += values.numel()

    @property
    def value(self) -> float:
        return self._total / self._count
