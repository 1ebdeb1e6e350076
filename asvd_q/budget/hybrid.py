"""The forms that a choice hangs on, measured where they will stand.

Predictions take every layer alone, in the dense model, and to second order. Here the chosen model
is compressed once, by the ordinary loop, and block after block the contested forms of a layer are
put behind it: all before the layer's site compressed as chosen, all after it dense. What is
measured is the divergence from the dense model that the form adds to that.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from asvd_q import __version__
from asvd_q.budget.choice import Choice, Offering, choose
from asvd_q.budget.contest import Tried
from asvd_q.budget.explicit import with_plan
from asvd_q.budget.offers import Offer
from asvd_q.budget.sweep import LayerTried, TrialCache
from asvd_q.compression import Calibration, compress
from asvd_q.compression.layer import compress_layer
from asvd_q.compression.pairs import site_by_site
from asvd_q.errors import RankError
from asvd_q.models.blockwise import BlockwiseModel, find_sites
from asvd_q.models.hidden import HiddenStates
from asvd_q.models.refs import Site, WeightRef
from asvd_q.plan import LayerPlan, Slot
from asvd_q.progress import Progress, silent
from asvd_q.recipe import Recipe
from asvd_q.search.allocation import Budget, Unit
from asvd_q.search.candidates import Candidate
from asvd_q.search.scoring import Mean, Score
from asvd_q.search.spectra import fisher_if_wanted
from asvd_q.statistics.collectors import SiteStatistics, collecting
from asvd_q.store import Store, StoreHeader

__all__ = ["checked", "contested", "with_measured"]

_SHARES = (0.8, 0.9, 1.1, 1.25)
"""Of what the choice takes: budgets whose choices show what a layer might be given instead."""

_LARGEST_SCALE = 2.0
"""By which a layer's predictions are corrected at most; more would be noise."""

_WINDOWS = 8
"""Calibration windows that forms are measured on; statistics are of all of them."""


def contested(offering: Offering, choice: Choice) -> dict[str, list[Candidate]]:
    """Per layer the chosen form, and those that somewhat smaller and larger budgets would take.

    Layers that all of them agree about are left out, and embedding and head: they keep what was
    predicted of them.
    """
    chosen = choice.allocation.chosen
    found = {name: [candidate] for name, candidate in chosen.items()}
    spent = choice.layer_bytes
    unit: Unit = "bytes"
    if offering.times is not None:
        unit, spent = "nanoseconds", sum(form.nanoseconds for form in chosen.values())
    for share in _SHARES:
        try:
            other = choose(offering, Budget(unit, int(share * spent)))
        except RankError:  # smaller than anything on offer
            continue
        for name, candidate in other.allocation.chosen.items():
            if candidate not in found[name]:
                found[name].append(candidate)
    inside = {layer.name for layer in offering.base if layer.block is not None}
    return {name: forms for name, forms in found.items() if len(forms) > 1 and name in inside}


def with_measured(offering: Offering, measured: Mapping[str, LayerTried]) -> Offering:
    """Candidates whose losses differ, within a layer, as was measured.

    Only differences say something: where layers are refitted, each one also makes up for errors
    before it, whatever its form. What was not measured of a layer is scaled as the rest of it
    turned out, so that it is neither favoured nor spurned for being unknown.

    Args:
        measured: of a layer, the chosen form first.
    """
    return replace(
        offering,
        candidates={
            name: _rescaled(forms, measured[name].tried) if name in measured else forms
            for name, forms in offering.candidates.items()
        },
    )


def _rescaled(forms: Sequence[Candidate], tried: Sequence[Tried]) -> tuple[Candidate, ...]:
    losses = {_key(offer.layer): loss for offer, loss in tried}
    keys = [None if form.layer is None else _key(form.layer) for form in forms]
    predicted = {key: form.loss for key, form in zip(keys, forms, strict=True) if key in losses}
    chosen = next((key for key in losses if key in predicted), None)
    if chosen is None:
        return tuple(forms)
    steps = [
        (loss - predicted[chosen], losses[key] - losses[chosen])
        for key, loss in predicted.items()
        if key is not None
    ]
    squares = sum(one * one for one, _ in steps)
    slope = sum(one * other for one, other in steps) / squares if squares > 0 else 1.0
    slope = min(max(slope, 1 / _LARGEST_SCALE), _LARGEST_SCALE)
    anchor = slope * predicted[chosen] - losses[chosen]
    found = [
        slope * form.loss if key not in losses else losses[key] + anchor
        for key, form in zip(keys, forms, strict=True)
    ]
    least = min(0.0, *found)
    return tuple(replace(form, loss=loss - least) for form, loss in zip(forms, found, strict=True))


def checked(
    recipe: Recipe,
    model: BlockwiseModel,
    windows: Tensor,
    offering: Offering,
    choice: Choice,
    folder: Path,
    key: str,
    *,
    known_only: bool = False,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> Offering | None:
    """The offering with the contested forms measured.

    Args:
        recipe: with the budget that the choice was made for.
        folder: keeps what is measured.
        key: of the trials that the choice rests on.
        known_only: run nothing and write nothing.
        scratch: an existing folder for hidden states instead of memory.

    Returns:
        None where nothing may be run, and something was not measured before.
    """
    forms = contested(offering, choice)
    made = json.dumps(recipe.compression_fields(), sort_keys=True)
    text = f"{key} {made} {choice.plan.model_dump_json()}"
    cache = TrialCache(folder, hashlib.sha256(text.encode()).hexdigest())
    known = cache.load()
    missing = {name: wanted for name, wanted in forms.items() if name not in known}
    if missing and known_only:
        return None
    if missing:
        place = folder / "hybrid"
        shutil.rmtree(place, ignore_errors=True)
        try:
            _Check(recipe, model, windows, choice, place, scratch, progress).run(missing, cache)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        known = cache.load()
    return with_measured(offering, known)


class _Check:
    def __init__(
        self,
        recipe: Recipe,
        model: BlockwiseModel,
        windows: Tensor,
        choice: Choice,
        place: Path,
        scratch: Path | None,
        progress: Progress,
    ) -> None:
        assert recipe.calibration is not None
        self.recipe = with_plan(recipe, choice.plan)
        self.model = model
        self.progress = progress
        self.scratch = scratch
        self.weights = {weight.name: weight for weight in model.skeleton.weights}
        section = recipe.calibration
        self.calibration = Calibration(windows, section.batch_size, section.sequential, scratch)
        self.batches = self.calibration.batches()
        self.measured = -(-min(_WINDOWS, len(windows)) // section.batch_size)
        self.fisher: dict[str, Tensor] = {}
        header = StoreHeader(
            key="hybrid", asvd_q=__version__, source=model.source.identity, plan=choice.plan
        )
        self.store = Store.create(place, header, model.source)

    def run(self, forms: Mapping[str, Sequence[Candidate]], cache: TrialCache) -> None:
        """Compress the choice, then measure block by block."""
        if self.recipe.decompose is not None:
            refs = [self.weights[name] for name in forms]
            self.fisher = fisher_if_wanted(
                self.model, self.calibration.windows, refs, self.recipe.decompose, self.scratch
            )
        compress(
            self.model,
            self.store,
            section=self.recipe.decompose,
            quantization=self.recipe.quantize,
            correction=self.recipe.correct,
            seed=self.recipe.seed,
            calibration=self.calibration,
            progress=self.progress,
        )
        self._measure(forms, cache)

    @torch.no_grad()
    def _measure(self, forms: Mapping[str, Sequence[Candidate]], cache: TrialCache) -> None:
        model = self.model
        dense, hidden, last = (
            HiddenStates.named(self.scratch, f"hybrid-{name}")
            for name in ("dense", "hidden", "last")
        )
        with model.outside(replaced=self.store.replaced) as outside:
            for batch in self.batches:
                hidden.append(model.entering(outside, batch))
        with model.outside() as outside:
            for number, batch in enumerate(self.batches):
                dense.append(model.embed(outside, batch))
                if number < self.measured:
                    last.append(dense[number])
            for index in range(len(model)):
                self.model.advance(model.load_block(index), index, last)
            score = Score(model, outside, self.batches[: self.measured], "kl", last)
            done = 0
            for index in range(len(model)):
                names = [name for name in forms if self.weights[name].block == index]
                block = model.load_block(index)
                if names:
                    self._block(index, block, names, forms, dense, hidden, score, cache)
                    done += len(names)
                    self.progress("budget: measuring forms", done, len(forms))
                self.model.advance(block, index, dense)
                compressed = model.load_block(index, replaced=self.store.replaced)
                self.model.advance(compressed, index, hidden)

    def _block(
        self,
        index: int,
        block: nn.Module,
        names: Sequence[str],
        forms: Mapping[str, Sequence[Candidate]],
        dense: HiddenStates,
        hidden: HiddenStates,
        score: Score,
        cache: TrialCache,
    ) -> None:
        before: set[str] = set()
        left = set(names)
        for site, statistics in self._sites(index, block, before, dense, hidden):
            wanted = [name for name in site.modules if name in names]
            if wanted:
                base = self._loss(self._with({}, before, index), index, hidden, score)
            for name in wanted:
                tried = []
                for form in forms[name]:
                    assert form.layer is not None
                    matrices = self._matrices(self.weights[name], form.layer, statistics)
                    changed = self._with({name: matrices}, before, index)
                    loss = self._loss(changed, index, hidden, score) - base
                    tried.append((Offer(form.layer, form.bytes), loss))
                cache.add(name, LayerTried(tried))
                left.remove(name)
            before |= set(site.modules)
        for name in left:  # no token reaches it: there is nothing to measure
            cache.add(name, LayerTried())

    def _sites(
        self,
        index: int,
        block: nn.Module,
        before: set[str],
        dense: HiddenStates,
        hidden: HiddenStates,
    ) -> Iterator[tuple[Site, SiteStatistics]]:
        """Sites in order, with the statistics that the loop of the compression collects there."""
        every = {name for name, weight in self.weights.items() if weight.block == index}
        sites = find_sites(self.model, block, index, dense[0], every)
        if self.recipe.refits:
            yield from site_by_site(
                self.model,
                index,
                sites,
                block,
                lambda: self._with({}, before, index),
                dense,
                hidden,
            )
            return
        prefix = self.model.skeleton.block_name(index)
        inputs = hidden if self.calibration.sequential else dense
        with collecting(block, prefix, sites, self.model.device) as collectors:
            for position in range(len(inputs)):
                self.model.run_block(block, index, inputs[position])
        for site in sites:
            yield site, collectors.pop(site.name).result()

    def _with(
        self,
        own: Mapping[str, dict[Slot, Tensor] | None],
        before: set[str],
        index: int,
    ) -> nn.Module:
        """The block with some layers as they are stored, some as given, the others dense."""

        def replaced(name: str) -> dict[Slot, Tensor] | None:
            if name in own:
                return own[name]
            return self.store.replaced(name) if name in before else None

        return self.model.load_block(index, replaced=replaced)

    def _matrices(
        self, ref: WeightRef, layer: LayerPlan, statistics: SiteStatistics
    ) -> dict[Slot, Tensor] | None:
        weight = self.model.source.matrix(ref).to(self.model.device)
        made = compress_layer(
            weight,
            layer,
            self.store.float_type,
            section=self.recipe.decompose,
            quantization=self.recipe.quantize,
            correction=self.recipe.correct,
            statistics=statistics,
            fisher=self.fisher.get(ref.name),
            seed=self.recipe.seed,
        )
        return made.replacement()

    def _loss(self, block: nn.Module, index: int, hidden: HiddenStates, score: Score) -> float:
        """Mean divergence with this block behind the compressed ones and dense ones behind it."""
        states = HiddenStates.named(self.scratch, "hybrid-candidate")
        for position in range(self.measured):
            states.append(self.model.run_block(block, index, hidden[position]))
        for later in range(index + 1, len(self.model)):
            self.model.advance(self.model.load_block(later), later, states)
        mean = Mean()
        for position in range(len(states)):
            mean.add(next(score.of(position, [states[position]])))
        return mean.value


def _key(layer: LayerPlan) -> str:
    return layer.model_dump_json(include={"form", "rank", "quantization"})
