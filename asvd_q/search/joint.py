"""The loss that truncating many layers together costs, measured for several choices at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from asvd_q.decomposition import Spectrum, truncate
from asvd_q.errors import NumericsError
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.hidden import HiddenStates
from asvd_q.models.refs import WeightRef
from asvd_q.progress import Progress, silent
from asvd_q.recipe import DecomposeSection
from asvd_q.search.layers import layers_by_block
from asvd_q.search.scoring import Mean, Metric, Score
from asvd_q.search.spectra import fisher_if_wanted, spectra_by_block

__all__ = ["JointLosses", "measure_jointly"]


@dataclass(frozen=True)
class JointLosses:
    """What `measure_jointly` found, nats per token.

    Attributes:
        dense: mean next-token loss of the dense model; 0 with `metric: kl`.
        increases: of every choice, above that.
    """

    dense: float
    increases: tuple[float, ...]


@torch.no_grad()
def measure_jointly(
    model: BlockwiseModel,
    windows: Tensor,
    choices: Sequence[Mapping[str, int]],
    section: DecomposeSection,
    *,
    metric: Metric = "perplexity",
    batch_size: int,
    folder: Path | None = None,
    progress: Progress = silent,
) -> JointLosses:
    """Loss increase of every choice of ranks, all its layers truncated together.

    Block by block: the dense model is run once, for the statistics; every layer is decomposed
    once; and every choice has hidden states of its own, which pass through the block with its
    weights replaced by U_r U_rᵀ W. So what is kept is the hidden states of the windows once for
    the dense model and once for each choice.

    Args:
        model: dense; nothing in it is changed.
        windows: int64 (samples, tokens).
        choices: layer inside a block → rank; layers that are not named stay dense.
        section: how to decompose. Statistics are those of the dense model.
        metric: the loss is the mean next-token loss minus the dense model's, or the mean KL
            divergence from the dense model's distribution over the same positions.
        batch_size: windows per forward pass.
        folder: an existing folder that keeps hidden states instead of memory.
        progress: called with the number of blocks done.

    Returns:
        The increases in the order of `choices`, and the dense model's own loss. A layer that no
        token reaches changes nothing.

    Raises:
        ModelError: a name that is no layer of a block.
        RankError: a rank outside 1 … min(out, in).
        NumericsError: a layer whose weight or inputs are not finite, or a loss that is not.
    """
    ranks: dict[str, set[int]] = {}
    for choice in choices:
        for name, rank in choice.items():
            ranks.setdefault(name, set()).add(rank)
    layers = layers_by_block(model, ranks)
    weights = [weight for block in layers.values() for weight in block]
    fisher = fisher_if_wanted(model, windows, weights, section, folder)
    batches = torch.split(windows, batch_size)
    dense = HiddenStates.named(folder, "dense")
    streams = [HiddenStates.named(folder, f"choice-{number:03d}") for number in range(len(choices))]
    with model.outside() as outside:
        model.embed(outside, windows[:1])  # the shape that sites are found on
        for batch in batches:
            embedded = model.embed(outside, batch)
            for states in (dense, *streams):
                states.append(embedded)
        for index, block, spectra in spectra_by_block(model, dense, weights, section, fisher):
            prefix = model.skeleton.block_name(index)
            for choice, states in zip(choices, streams, strict=True):
                with _truncating(block, prefix, layers.get(index, []), spectra, choice):
                    for position in range(len(batches)):
                        states[position] = model.run_block(block, index, states[position])
            progress("measuring allocations", index + 1, len(model))
            del block, spectra  # before the next ones are made
        score = Score(model, outside, batches, metric, dense)
        means = [Mean() for _ in choices]
        for position in range(len(batches)):
            values = score.of(position, (states[position] for states in streams))
            for mean, value in zip(means, values, strict=True):
                mean.add(value)
    increases = tuple(mean.value - score.dense for mean in means)
    for choice, loss in zip(choices, increases, strict=True):
        if not math.isfinite(loss):
            raise NumericsError(f"with {len(choice)} layers truncated the model's loss is {loss}")
    return JointLosses(score.dense, increases)


@contextmanager
def _truncating(
    block: nn.Module,
    prefix: str,
    weights: Sequence[WeightRef],
    spectra: Mapping[str, Spectrum],
    ranks: Mapping[str, int],
) -> Iterator[None]:
    """Weights of a block are U_r U_rᵀ W inside the context; the bias stays.

    Args:
        prefix: dotted path of the block in the model.
        weights: the block's layers that any choice truncates.
    """
    originals: dict[str, nn.Parameter] = {}
    try:
        for weight in weights:
            if weight.name not in ranks or weight.name not in spectra:
                continue
            path = weight.tensor_name.removeprefix(prefix + ".")
            if path not in originals:  # one parameter can hold several weights
                originals[path] = block.get_parameter(path)
                copied = originals[path].detach().clone()
                _set_parameter(block, path, nn.Parameter(copied, requires_grad=False))
            product = truncate(spectra[weight.name], ranks[weight.name]).product()
            weight.take(block.get_parameter(path).data).copy_(product)
        yield
    finally:
        for path, original in originals.items():
            _set_parameter(block, path, original)


def _set_parameter(block: nn.Module, path: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(block.get_submodule(owner), leaf, parameter)
