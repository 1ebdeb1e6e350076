"""The loss that truncating one layer costs, predicted: every rank of every layer at once.

With g the gradient of the summed loss at a layer's output and δy(r) the error that truncation to
rank r puts there, the change of the loss is Σ d to first order, d = g · δy(r) per token; the
second-order term is ½ Σ d², with the squared gradient for the curvature (empirical Fisher) and
tokens taken as independent. Truncation projects the output, so with y the output without its bias
and u_j the columns of U, d(r) = −Σ_{j > r} (g · u_j) (y · u_j): two products of tokens with U, and
a cumulated sum, give all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asvd_q.models.blockwise import BlockwiseModel, find_sites
from asvd_q.models.hidden import HiddenStates
from asvd_q.models.refs import WeightRef
from asvd_q.progress import Progress, silent
from asvd_q.recipe import DecomposeSection
from asvd_q.search.spectra import decomposing, fisher_if_wanted
from asvd_q.statistics.backward import backward_through_block, backward_through_head, keep_inputs
from asvd_q.statistics.labels import Labels, NextTokenLoss

__all__ = ["fast_losses"]

_CHUNK = 2**20
"""Entries of (tokens, k) products that are alive at a time; a few megabytes stay in cache."""


def fast_losses(
    model: BlockwiseModel,
    windows: Tensor,
    weights: Sequence[WeightRef],
    section: DecomposeSection,
    *,
    labels: Labels = "corpus",
    seed: int = 0,
    batch_size: int,
    folder: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Predicted loss increase of every rank, one layer truncated and all others dense.

    One pass forwards collects the statistics and keeps what enters each block; one pass backwards
    runs each block again. Kept besides the blocks' inputs are the bases U, in float32.

    Args:
        model: dense; nothing in it is changed.
        windows: int64 (samples, tokens).
        weights: layers inside the blocks.
        section: how to decompose.
        labels: the corpus' next tokens predict the change of their loss. Tokens drawn from the
            model's own distribution predict the KL divergence from the dense model; the
            first-order term, whose expectation is then zero, is left out with its noise.
        seed: of the drawn labels; they do not depend on `batch_size`.
        batch_size: windows per forward pass.
        folder: an existing folder that keeps inputs and bases instead of memory.
        progress: called with the number of blocks done, forwards and backwards.

    Returns:
        Layer → float64 (k + 1,), k = min(out, in): entry r is the loss increase at rank r in nats
        per predicted token, as `exact_losses` measures it with `metric: perplexity` (corpus) or
        `kl` (sampled); entry k is 0. A layer that no token reaches is left out.

    Raises:
        NumericsError: naming a layer whose weight or inputs are not finite.

    Source: second-order expansion as in Optimal Brain Damage, with the Fisher matrix for the
    Hessian.
    """
    fisher = fisher_if_wanted(model, windows, weights, section, folder)
    total = 2 * len(model)
    batches = torch.split(windows, batch_size)
    bases = _Bases(folder, model.device)
    loss = NextTokenLoss(batches, labels, seed)
    with model.outside() as outside:
        model.embed(outside, windows[:1])  # the shape that sites are found on

        @contextmanager
        def around(index: int, block: nn.Module, inputs: HiddenStates) -> Iterator[None]:
            wanted = [weight for weight in weights if weight.block == index]
            names = {weight.name for weight in wanted}
            sites = find_sites(model, block, index, inputs[0][:1], names)
            with decomposing(
                model, block, index, sites, wanted, section, fisher, torch.float32
            ) as spectra:
                yield
            bases.put(index, {name: found.left for name, found in spectra.items()})

        inputs = keep_inputs(
            model,
            outside,
            batches,
            folder=folder,
            around=around,
            progress=lambda done: progress("sensitivity", done, total),
        )
        gradients = inputs.pop()
        backward_through_head(model, outside, gradients, loss)
    predicted = windows.shape[0] * (windows.shape[1] - 1)
    found: dict[str, Tensor] = {}
    for index in reversed(range(len(model))):
        block = model.load_block(index)
        with _Projections(
            block, model.skeleton.block_name(index), bases.take(index), labels == "corpus"
        ) as probe:
            backward_through_block(model, block, index, inputs.pop(), gradients, probe)
        found |= probe.result(predicted)
        del block
        progress("sensitivity", total - index, total)
    return {weight.name: found[weight.name] for weight in weights if weight.name in found}


class _Projections:
    """Catches outputs of a block's layers and sums d and d² over tokens, for every rank."""

    def __init__(
        self, block: nn.Module, prefix: str, bases: Mapping[str, Tensor], first_order: bool
    ) -> None:
        """
        Args:
            bases: layer → U (out, k).
            first_order: whether the sum of d counts too.
        """
        self._first_order = first_order
        self._modules = {
            name: block.get_submodule(name.removeprefix(prefix + ".")) for name in bases
        }
        # Columns from the last to the first: sums over j > r become sums over leading columns.
        self._bases = {name: basis.flip(1) for name, basis in bases.items()}
        self._first = {name: _zeros(basis) for name, basis in bases.items()}
        self._second = {name: _zeros(basis) for name, basis in bases.items()}
        self._seen: list[tuple[str, Tensor]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> _Projections:
        def note(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                self._seen.append((name, output))

            return hook

        self._handles = [
            module.register_forward_hook(note(name)) for name, module in self._modules.items()
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._seen.clear()

    def tensors(self) -> Sequence[Tensor]:
        """The layers' outputs on the last batch."""
        return [output for _, output in self._seen]

    @torch.no_grad()
    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Take in one batch's gradients at the outputs; None where an output is unused."""
        for (name, output), gradient in zip(self._seen, gradients, strict=True):
            if gradient is not None:
                self._project(name, output.detach().flatten(0, -2), gradient.flatten(0, -2))
        self._seen.clear()

    def _project(self, name: str, output: Tensor, gradient: Tensor) -> None:
        basis = self._bases[name]
        bias = cast(Tensor | None, self._modules[name].bias)
        offset = None if bias is None else bias.to(basis.dtype) @ basis
        rows = max(_CHUNK // basis.shape[1], 1)
        for y, g in zip(torch.split(output, rows), torch.split(gradient, rows), strict=True):
            d = y.to(basis.dtype) @ basis
            if offset is not None:
                d -= offset
            d *= g.to(basis.dtype) @ basis
            d.cumsum_(1)
            if self._first_order:
                self._first[name] -= d.sum(0)
            self._second[name] += d.square_().sum(0)

    def result(self, tokens: int) -> dict[str, Tensor]:
        """Layer → (k + 1,), as `fast_losses` returns it; `tokens` is the number of losses."""
        losses: dict[str, Tensor] = {}
        for name in self._modules:
            curve = self._second[name] / 2
            if self._first_order:
                curve = curve + self._first[name]
            # At the full rank nothing is truncated.
            losses[name] = torch.cat([curve.flip(0) / tokens, curve.new_zeros(1)]).cpu()
        return losses


def _zeros(basis: Tensor) -> Tensor:
    return torch.zeros(basis.shape[1], dtype=torch.float64, device=basis.device)


class _Bases:
    """U of every layer, block by block, in float32."""

    def __init__(self, folder: Path | None, device: torch.device) -> None:
        """Args: folder: keeps them on disk instead of in memory."""
        self._folder = folder
        self._device = device
        self._memory: dict[int, dict[str, Tensor]] = {}

    def put(self, index: int, bases: Mapping[str, Tensor]) -> None:
        """Keep the bases of a block."""
        rounded = {name: basis.float().contiguous() for name, basis in bases.items()}
        if self._folder is None:
            self._memory[index] = rounded
        else:
            save_file(rounded, self._path(index))

    def take(self, index: int) -> dict[str, Tensor]:
        """The bases of a block, which are then dropped."""
        if self._folder is None:
            return self._memory.pop(index)
        found = load_file(self._path(index), device=str(self._device))
        self._path(index).unlink()
        return found

    def _path(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder / f"bases-{index:05d}.safetensors"
