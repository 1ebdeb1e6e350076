"""Fisher information of each input channel, from a backward pass block by block.

The squared gradient of the loss with respect to a weight, averaged over windows and over the
weight's rows, tells how much the loss minds an error in each input channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.refs import WeightRef
from asvd_q.statistics.backward import backward_through_block, backward_through_head, keep_inputs

__all__ = ["fisher_information"]


def fisher_information(
    model: BlockwiseModel,
    windows: Tensor,
    weights: list[WeightRef],
    *,
    folder: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Tensor]:
    """Root mean squared gradient per input channel, of the dense model.

    Args:
        model: dense; nothing in it is changed.
        windows: int64 (samples, tokens).
        weights: the layers it is wanted for; outside the blocks that can be the head.
        folder: keeps the blocks' inputs on disk instead of in memory.
        progress: called with the number of blocks done, forwards and backwards.

    Returns:
        Layer name → float64 (in,): √ mean over windows and rows of (∂loss/∂W)², loss being the
        mean next-token loss of one window.

    Source: the Fisher variant of ASVD's scaling (arXiv 2312.05821).
    """
    # A window at a time: the square is taken of each window's gradient, not of their sum.
    batches = torch.split(windows, 1)

    def loss(position: int, number: int, logits: Tensor) -> Tensor:
        labels = windows[position, 1:].to(logits.device)
        return torch.nn.functional.cross_entropy(logits[:-1].float(), labels)

    with model.outside() as outside:
        inputs = keep_inputs(model, outside, batches, folder=folder, progress=progress)
        gradients = inputs.pop()
        head = _Squares(outside, "", [weight for weight in weights if weight.block is None])
        backward_through_head(model, outside, gradients, loss, head)
    found = head.result(len(windows))
    for index in reversed(range(len(model))):
        block = model.load_block(index)
        wanted = [weight for weight in weights if weight.block == index]
        squares = _Squares(block, model.skeleton.block_name(index) + ".", wanted)
        backward_through_block(model, block, index, inputs.pop(), gradients, squares)
        found |= squares.result(len(windows))
        del block, squares
        progress(2 * len(model) - index)
    return found


class _Squares:
    """Sums squared gradients of some of a module's weights over windows."""

    def __init__(self, module: nn.Module, prefix: str, weights: list[WeightRef]) -> None:
        self.weights = weights
        self._parameters = [
            module.get_parameter(weight.tensor_name.removeprefix(prefix)).requires_grad_(True)
            for weight in weights
        ]
        self._sums = [torch.zeros(weight.shape[1], dtype=torch.float64) for weight in weights]

    def tensors(self) -> Sequence[Tensor]:
        """The weights."""
        return self._parameters

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Take in one window's gradients; None where a weight is unused."""
        for total, weight, gradient in zip(self._sums, self.weights, gradients, strict=True):
            if gradient is not None:
                total += weight.take(gradient).double().square().mean(0).cpu()

    def result(self, windows: int) -> dict[str, Tensor]:
        """Layer name → (in,), as `fisher_information` returns it."""
        return {
            weight.name: (total / windows).sqrt()
            for weight, total in zip(self.weights, self._sums, strict=True)
        }
