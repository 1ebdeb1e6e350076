"""A backward pass block by block.

Activations are not kept: every block's input is, and the block is run again when its gradient is
due, so only one block's weights and graph exist at a time (Chen et al., arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.hidden import HiddenStates

__all__ = ["Probe", "backward_through_block", "backward_through_head", "keep_inputs"]


class Probe(Protocol):
    """Wants gradients of some tensors of a module besides those of its input."""

    def tensors(self) -> Sequence[Tensor]:
        """The tensors, after the module was run on a batch: parameters or activations of it."""

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Take in a batch's gradients, in the order of `tensors`; None where one is unused."""


def _no_context(index: int, block: nn.Module, inputs: HiddenStates) -> nullcontext[None]:
    return nullcontext()


@torch.no_grad()
def keep_inputs(
    model: BlockwiseModel,
    outside: nn.Module,
    batches: Sequence[Tensor],
    *,
    folder: Path | None = None,
    around: Callable[[int, nn.Module, HiddenStates], AbstractContextManager[object]] = _no_context,
    progress: Callable[[int], None] = lambda done: None,
) -> list[HiddenStates]:
    """Run a model forwards and keep what enters each block and the head.

    Args:
        batches: int64 (windows, tokens) each.
        folder: keeps them on disk instead of in memory.
        around: gives a context that a block, loaded and with its inputs, is run in.
        progress: called with the number of blocks done.

    Returns:
        Per block, then for the head: one entry (windows, tokens, hidden) per batch.
    """
    inputs = [HiddenStates.named(folder, f"inputs-{index:05d}") for index in range(len(model) + 1)]
    for batch in batches:
        inputs[0].append(model.embed(outside, batch))
    for index in range(len(model)):
        block = model.load_block(index)
        with around(index, block, inputs[index]):
            for position in range(len(batches)):
                inputs[index + 1].append(model.run_block(block, index, inputs[index][position]))
        del block
        progress(index + 1)
    return inputs


def backward_through_head(
    model: BlockwiseModel,
    outside: nn.Module,
    hidden: HiddenStates,
    loss: Callable[[int, int, Tensor], Tensor],
    probe: Probe | None = None,
) -> None:
    """Replace what enters the head by the loss' gradient with respect to it, window by window.

    Logits of a whole batch can be larger than the model.

    Args:
        loss: position of a batch, of a window in it, its logits (tokens, vocabulary) → scalar.
    """
    for position in range(len(hidden)):
        found = []
        for number, window in enumerate(torch.split(hidden[position].detach(), 1)):
            inputs = window.requires_grad_(True)
            with torch.enable_grad():
                value = loss(position, number, model.logits(outside, inputs)[0])
            found.append(_gradients(value, None, inputs, probe))
        hidden[position] = torch.cat(found)


def backward_through_block(
    model: BlockwiseModel,
    block: nn.Module,
    index: int,
    inputs: HiddenStates,
    gradients: HiddenStates,
    probe: Probe | None = None,
) -> None:
    """Replace gradients at a block's output by those at its input, batch by batch.

    Args:
        block: loaded.
        inputs: that `keep_inputs` kept.
        gradients: of the loss with respect to the block's output.
    """
    for position in range(len(inputs)):
        hidden = inputs[position].detach().requires_grad_(True)
        with torch.enable_grad():
            output = model.run_block(block, index, hidden)
        gradient = gradients[position].to(output.device)
        gradients[position] = _gradients(output, gradient, hidden, probe)


def _gradients(
    output: Tensor, gradient: Tensor | None, inputs: Tensor, probe: Probe | None
) -> Tensor:
    """Gradient at `inputs`; those of the probe's tensors go to the probe."""
    wanted = [] if probe is None else probe.tensors()
    found, *rest = torch.autograd.grad(output, [inputs, *wanted], gradient, allow_unused=True)
    if probe is not None:
        probe.add(rest)
    return found
