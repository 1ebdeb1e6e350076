"""The loss that truncating one layer costs, measured: that layer truncated, all others dense."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from asvd_q.decomposition import Spectrum
from asvd_q.errors import NumericsError
from asvd_q.models.blockwise import BlockwiseModel, find_sites
from asvd_q.models.hidden import HiddenStates
from asvd_q.models.refs import Site
from asvd_q.progress import Progress, silent
from asvd_q.recipe import DecomposeSection
from asvd_q.search.layers import layers_by_block
from asvd_q.search.replay import TruncatedLayer
from asvd_q.search.scoring import Mean, Metric, Score
from asvd_q.search.spectra import decomposing, fisher_if_wanted

__all__ = ["exact_losses"]


@torch.no_grad()
def exact_losses(
    model: BlockwiseModel,
    windows: Tensor,
    ranks: Mapping[str, Sequence[int]],
    section: DecomposeSection,
    *,
    metric: Metric = "perplexity",
    batch_size: int,
    candidates_per_batch: int = 1,
    folder: Path | None = None,
    known: Mapping[str, Mapping[int, float]] | None = None,
    on_layer: Callable[[str, dict[int, float]], None] = lambda name, losses: None,
    progress: Progress = silent,
) -> dict[str, dict[int, float]]:
    """Loss increase of every candidate, a candidate being one layer at one rank.

    The statistics are those of the dense model. Blocks are visited from the first to the last.
    All ranks of a layer go through the blocks behind it together, so what is kept is the hidden
    states of the windows once for the dense model and once for each rank of one layer; with
    `metric: kl`, those that enter the head too.

    Args:
        model: dense; nothing in it is changed.
        windows: int64 (samples, tokens).
        ranks: layer inside a block → the ranks to try.
        section: how to decompose.
        metric: the loss is the mean next-token loss minus the dense model's, or the mean KL
            divergence from the dense model's distribution over the same positions.
        batch_size: windows per forward pass.
        candidates_per_batch: ranks that share a forward pass through the blocks behind their
            own, as one batch of `candidates_per_batch · batch_size` windows.
        folder: an existing folder that keeps hidden states instead of memory.
        known: what was measured before; it is not measured again.
        on_layer: called with a layer and the losses measured of it, as soon as it is done.
        progress: called with the number of layers done.

    Returns:
        Layer → rank → nats per token, `known` included. A layer that no token reaches is left
        out.

    Raises:
        ModelError: a name that is no layer of a block, or a layer that runs twice in a pass.
        RankError: a rank outside 1 … min(out, in).
        NumericsError: a layer whose weight, inputs or losses are not finite.
    """
    sweep = _Sweep(model, windows, section, metric, batch_size, candidates_per_batch, folder)
    return sweep.run(ranks, known or {}, on_layer, progress)


class _Sweep:
    def __init__(
        self,
        model: BlockwiseModel,
        windows: Tensor,
        section: DecomposeSection,
        metric: Metric,
        batch_size: int,
        candidates_per_batch: int,
        folder: Path | None,
    ) -> None:
        self.model = model
        self.windows = windows
        self.batches = torch.split(windows, batch_size)
        self.section = section
        self.metric = metric
        self.candidates_per_batch = candidates_per_batch
        self.folder = folder

    def run(
        self,
        ranks: Mapping[str, Sequence[int]],
        known: Mapping[str, Mapping[int, float]],
        on_layer: Callable[[str, dict[int, float]], None],
        progress: Progress,
    ) -> dict[str, dict[int, float]]:
        found = {name: dict(known.get(name, {})) for name in ranks}
        missing = {
            name: [rank for rank in sorted(set(wanted)) if rank not in found[name]]
            for name, wanted in ranks.items()
        }
        pending = layers_by_block(self.model, missing)
        layers, done = sum(map(len, pending.values())), 0
        if not layers:
            return found
        weights = [ref for refs in pending.values() for ref in refs]
        fisher = fisher_if_wanted(self.model, self.windows, weights, self.section, self.folder)
        with self.model.outside() as outside:
            score = Score(self.model, outside, self.batches, self.metric, self._dense(outside))
            hidden = self._embed(outside)
            for index in range(max(pending) + 1):
                block = self.model.load_block(index)
                refs = pending.get(index, [])
                sites = self._sites(block, index, hidden) if refs else []
                outputs = HiddenStates.named(self.folder, f"dense-{index % 2}")
                with decomposing(
                    self.model, block, index, sites, refs, self.section, fisher
                ) as spectra:
                    for position in range(len(hidden)):
                        outputs.append(self.model.run_block(block, index, hidden[position]))
                for ref in refs:
                    if ref.name in spectra:
                        changed = TruncatedLayer(self.model, block, index, ref, sites)
                        losses = self._layer(
                            changed, spectra.pop(ref.name), missing[ref.name], hidden, score
                        )
                        found[ref.name] |= losses
                        on_layer(ref.name, losses)
                    done += 1
                    progress("sensitivity", done, layers)
                del block
                hidden = outputs
        return {name: losses for name, losses in found.items() if losses}

    def _layer(
        self,
        changed: TruncatedLayer,
        spectrum: Spectrum,
        ranks: Sequence[int],
        hidden: HiddenStates,
        score: Score,
    ) -> dict[int, float]:
        """Losses of one layer. Entries of `states` are (chunk · windows, tokens, hidden)."""
        step = self.candidates_per_batch
        chunks = [ranks[start : start + step] for start in range(0, len(ranks), step)]
        states = HiddenStates.named(self.folder, "candidates")
        for position in range(len(hidden)):
            outputs = changed.run(hidden[position], spectrum.left, ranks)
            for chunk in chunks:
                states.append(torch.cat([next(outputs) for _ in chunk]))
        for index in range(changed.index + 1, len(self.model)):
            block = self.model.load_block(index)
            self.model.advance(block, index, states)
        means = {rank: Mean() for rank in ranks}
        for position in range(len(hidden)):
            for number, chunk in enumerate(chunks):
                parts = states[position * len(chunks) + number].chunk(len(chunk))
                for rank, values in zip(chunk, score.of(position, parts), strict=True):
                    means[rank].add(values)
        losses = {rank: mean.value - score.dense for rank, mean in means.items()}
        for rank, loss in losses.items():
            if not math.isfinite(loss):
                raise NumericsError(f"{spectrum.name}: at rank {rank} the model's loss is {loss}")
        return losses

    def _sites(self, block: nn.Module, index: int, hidden: HiddenStates) -> list[Site]:
        names = {ref.name for ref in self.model.skeleton.weights if ref.block == index}
        return find_sites(self.model, block, index, hidden[0][:1], names)

    def _embed(self, outside: nn.Module) -> HiddenStates:
        hidden = HiddenStates.named(self.folder, "dense-1")
        for batch in self.batches:
            hidden.append(self.model.embed(outside, batch))
        # Blocks can be run on the shapes that were embedded: candidates are stacked, and sites
        # are found on one window.
        self.model.embed(outside, self.windows[:1])
        for count in range(2, self.candidates_per_batch + 1):
            for batch in (self.batches[0], self.batches[-1]):
                self.model.embed(outside, batch.repeat(count, 1))
        return hidden

    def _dense(self, outside: nn.Module) -> HiddenStates:
        """What enters the head of the dense model."""
        hidden = HiddenStates.named(self.folder, "dense-last")
        for batch in self.batches:
            hidden.append(self.model.embed(outside, batch))
        for index in range(len(self.model)):
            block = self.model.load_block(index)
            self.model.advance(block, index, hidden)
        return hidden
