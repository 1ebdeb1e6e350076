"""Fisher information of each input channel, from a backward pass block by block.

The squared gradient of the loss with respect to a weight, averaged over windows and over the
weight's rows, tells how much the loss minds an error in each input channel. Activations are not
kept: every block's input is, and the block is run again when its gradient is due, so only one
block's weights and graph exist at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.hidden import HiddenStates
from asvd_q.models.refs import WeightRef

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

    Source: the Fisher variant of ASVD's scaling (arXiv 2312.05821); checkpointed backward.
    """
    inputs = [HiddenStates(_subfolder(folder, index)) for index in range(len(model) + 1)]
    with model.outside() as outside:
        with torch.no_grad():
            for window in windows:
                inputs[0].append(model.embed(outside, window[None]))
            for index in range(len(model)):
                block = model.load_block(index)
                for position in range(len(windows)):
                    inputs[index + 1].append(model.run_block(block, index, inputs[index][position]))
                del block
                progress(index + 1)
        gradients = inputs[-1]
        head = _Squares(outside, "", [weight for weight in weights if weight.block is None])
        for position, window in enumerate(windows):
            hidden = gradients[position].detach().requires_grad_(True)
            with torch.enable_grad():
                logits = model.logits(outside, hidden)[0, :-1].float()
                loss = torch.nn.functional.cross_entropy(logits, window[1:].to(logits.device))
                gradient, *rest = torch.autograd.grad(loss, [hidden, *head.parameters])
            gradients[position] = gradient
            head.add(rest)
    found = head.result(len(windows))
    for index in reversed(range(len(model))):
        wanted = [weight for weight in weights if weight.block == index]
        found |= _block_backward(model, index, wanted, inputs[index], gradients)
        progress(2 * len(model) - index)
    return found


def _block_backward(
    model: BlockwiseModel,
    index: int,
    weights: list[WeightRef],
    inputs: HiddenStates,
    gradients: HiddenStates,
) -> dict[str, Tensor]:
    """Squared gradients of one block's weights; `gradients` becomes those at its input."""
    block = model.load_block(index)
    squares = _Squares(block, model.skeleton.block_name(index) + ".", weights)
    for position in range(len(inputs)):
        hidden = inputs[position].detach().requires_grad_(True)
        with torch.enable_grad():
            output = model.run_block(block, index, hidden)
            gradient, *rest = torch.autograd.grad(
                output,
                [hidden, *squares.parameters],
                gradients[position].to(output.device),
                allow_unused=True,
            )
        gradients[position] = gradient
        squares.add(rest)
    return squares.result(len(inputs))


class _Squares:
    """Sums squared gradients of some of a module's weights over windows."""

    def __init__(self, module: nn.Module, prefix: str, weights: list[WeightRef]) -> None:
        self.weights = weights
        self.parameters = [
            module.get_parameter(weight.tensor_name.removeprefix(prefix)).requires_grad_(True)
            for weight in weights
        ]
        self._sums = [torch.zeros(weight.shape[1], dtype=torch.float64) for weight in weights]

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Take in one window's gradients, in the order of `parameters`; None where unused."""
        for total, weight, gradient in zip(self._sums, self.weights, gradients, strict=True):
            if gradient is not None:
                total += weight.take(gradient).double().square().mean(0).cpu()

    def result(self, windows: int) -> dict[str, Tensor]:
        """Layer name → (in,), as `fisher_information` returns it."""
        return {
            weight.name: (total / windows).sqrt()
            for weight, total in zip(self.weights, self._sums, strict=True)
        }


def _subfolder(folder: Path | None, index: int) -> Path | None:
    if folder is None:
        return None
    path = folder / f"inputs-{index:05d}"
    path.mkdir(parents=True, exist_ok=True)
    return path
