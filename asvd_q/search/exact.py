"""The loss that truncating one layer costs, measured: that layer truncated, all others dense."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from asvd_q.decomposition import Spectrum
from asvd_q.errors import ModelError, NumericsError, RankError
from asvd_q.metrics import kl_divergence, token_nll
from asvd_q.models.blockwise import BlockwiseModel, find_sites
from asvd_q.models.hidden import HiddenStates
from asvd_q.models.refs import Site, WeightRef
from asvd_q.recipe import DecomposeSection
from asvd_q.search.spectra import decomposing
from asvd_q.statistics.fisher import fisher_information

__all__ = ["Metric", "exact_losses"]

Metric = Literal["perplexity", "kl"]

Progress = Callable[[str, int, int], None]

_SLICE = 2**18
"""Logits that are measured at a time."""


@torch.no_grad()
def exact_losses(
    model: BlockwiseModel,
    windows: Tensor,
    ranks: Mapping[str, Sequence[int]],
    section: DecomposeSection,
    *,
    metric: Metric = "perplexity",
    batch_size: int,
    candidates_per_batch: int = 4,
    folder: Path | None = None,
    known: Mapping[str, Mapping[int, float]] | None = None,
    on_layer: Callable[[str, dict[int, float]], None] = lambda name, losses: None,
    progress: Progress = lambda stage, done, total: None,
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
        pending = self._pending(missing)
        layers, done = sum(map(len, pending.values())), 0
        if not layers:
            return found
        fisher = self._fisher(pending)
        with self.model.outside() as outside:
            score = _Score(self.model, outside, self.batches, self.metric, self._dense(outside))
            hidden = self._embed(outside)
            for index in range(max(pending) + 1):
                block = self.model.load_block(index)
                refs = pending.get(index, [])
                sites = self._sites(block, index, hidden) if refs else []
                outputs = self._states(f"dense-{index % 2}")
                with decomposing(
                    self.model, block, index, sites, refs, self.section, fisher
                ) as spectra:
                    for position in range(len(hidden)):
                        outputs.append(self.model.run_block(block, index, hidden[position]))
                for ref in refs:
                    if ref.name in spectra:
                        changed = _Changed(self.model, block, index, ref, sites)
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
        changed: _Changed,
        spectrum: Spectrum,
        ranks: Sequence[int],
        hidden: HiddenStates,
        score: _Score,
    ) -> dict[int, float]:
        """Losses of one layer. Entries of `states` are (chunk · windows, tokens, hidden)."""
        step = self.candidates_per_batch
        chunks = [ranks[start : start + step] for start in range(0, len(ranks), step)]
        states = self._states("candidates")
        for position in range(len(hidden)):
            outputs = changed.run(hidden[position], spectrum.left, ranks)
            for chunk in chunks:
                states.append(torch.cat([next(outputs) for _ in chunk]))
        for index in range(changed.index + 1, len(self.model)):
            block = self.model.load_block(index)
            for entry in range(len(states)):
                states[entry] = self.model.run_block(block, index, states[entry])
        means = {rank: _Mean() for rank in ranks}
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

    def _pending(self, missing: Mapping[str, Sequence[int]]) -> dict[int, list[WeightRef]]:
        """Block → its layers that are to be measured."""
        refs = {ref.name: ref for ref in self.model.skeleton.weights if ref.block is not None}
        pending: dict[int, list[WeightRef]] = {}
        for name, ranks in missing.items():
            if name not in refs:
                raise ModelError(f"the sensitivity of {name} is wanted: no block has that layer")
            most = min(refs[name].shape)
            for rank in ranks:
                if not 1 <= rank <= most:
                    raise RankError(f"{name}: rank {rank} is outside 1 … {most}")
            block = refs[name].block
            if ranks and block is not None:
                pending.setdefault(block, []).append(refs[name])
        return pending

    def _sites(self, block: nn.Module, index: int, hidden: HiddenStates) -> list[Site]:
        names = {ref.name for ref in self.model.skeleton.weights if ref.block == index}
        return find_sites(self.model, block, index, hidden[0][:1], names)

    def _fisher(self, pending: Mapping[int, list[WeightRef]]) -> dict[str, Tensor]:
        if self.section.scaling != "fisher":
            return {}
        weights = [ref for refs in pending.values() for ref in refs]
        return fisher_information(self.model, self.windows, weights, folder=self.folder)

    def _embed(self, outside: nn.Module) -> HiddenStates:
        hidden = self._states("dense-1")
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
        hidden = self._states("dense-last")
        for batch in self.batches:
            hidden.append(self.model.embed(outside, batch))
        for index in range(len(self.model)):
            block = self.model.load_block(index)
            for position in range(len(hidden)):
                hidden[position] = self.model.run_block(block, index, hidden[position])
        return hidden

    def _states(self, name: str) -> HiddenStates:
        """Hidden states under a name; new ones take the place of old ones."""
        if self.folder is None:
            return HiddenStates()
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return HiddenStates(folder)


class _Changed:
    """A block with one of its layers truncated."""

    def __init__(
        self,
        model: BlockwiseModel,
        block: nn.Module,
        index: int,
        ref: WeightRef,
        sites: Sequence[Site],
    ) -> None:
        """Args: sites: all of the block's."""
        self.model = model
        self.block = block
        self.index = index
        self._prefix = model.skeleton.block_name(index) + "."
        self._name = ref.name
        self._names = [name for site in sites for name in site.modules]
        self._siblings = next(site.modules for site in sites if ref.module in site.modules)

    def run(self, hidden: Tensor, left: Tensor, ranks: Sequence[int]) -> Iterator[Tensor]:
        """Outputs of the block, rank by rank, for inputs (windows, tokens, hidden).

        The layer's weight becomes U_r U_rᵀ W, so its output y (without the bias) becomes
        U_r U_rᵀ y. Layers that cannot tell the difference, those called before it and those
        with the same input, give the outputs that they gave to the dense block.
        """
        recorded = self._record(hidden)
        output = recorded.pop(self._name)
        bias = cast(Tensor | None, self._module(self._name).bias)
        dtype = torch.promote_types(output.dtype, torch.float32)
        y = output.to(dtype) if bias is None else output.to(dtype) - bias.to(dtype)
        left = left.to(dtype)
        projected = y @ left
        for rank in ranks:
            truncated = projected[..., :rank] @ left[:, :rank].T
            if bias is not None:
                truncated += bias
            with _answering(
                {self._module(name): value for name, value in recorded.items()}
                | {self._module(self._name): truncated.to(output.dtype)}
            ):
                yield self.model.run_block(self.block, self.index, hidden)

    def _record(self, hidden: Tensor) -> dict[str, Tensor]:
        """Dense outputs of the layer and of those whose inputs do not depend on it."""
        seen: dict[str, Tensor] = {}
        repeated: set[str] = set()

        def note(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                if name in seen:
                    repeated.add(name)
                seen[name] = output

            return hook

        handles = [self._module(name).register_forward_hook(note(name)) for name in self._names]
        try:
            self.model.run_block(self.block, self.index, hidden)
        finally:
            for handle in handles:
                handle.remove()
        if self._name in repeated:
            raise ModelError(f"{self._name} runs twice in one pass, which the search cannot vary")
        before = list(seen)[: list(seen).index(self._name) + 1]
        kept = (set(before) | set(self._siblings)) - repeated
        return {name: output for name, output in seen.items() if name in kept}

    def _module(self, name: str) -> nn.Module:
        return self.block.get_submodule(name.removeprefix(self._prefix))


@contextmanager
def _answering(answers: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Modules return given outputs inside the context, and compute nothing."""

    def answer(output: Tensor) -> Callable[..., Tensor]:
        return lambda *args: output

    for module, output in answers.items():
        vars(module)["forward"] = answer(output)
    try:
        yield
    finally:
        for module in answers:
            del vars(module)["forward"]


class _Score:
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
            mean = _Mean()
            for position in range(len(batches)):
                mean.add(next(self.of(position, [hidden[position]])))
            self.dense = mean.value

    def of(self, position: int, candidates: Sequence[Tensor]) -> Iterator[Tensor]:
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


class _Mean:
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
