"""Trials of all layers, block by block, from one pass forwards and one backwards.

    <folder>/<key>/<layer>.json     {"key": …, "tried": [{"layer": …, "bytes": …, "loss": …}, …],
                                     "uniform": […]}

What was tried of a layer is kept as soon as it is known, under a key that covers all that it
depends on; a sweep that was interrupted goes on with the layers that are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from asvd_q.budget.contest import Cost, Tried, contest, stored, try_all
from asvd_q.budget.counting import Count
from asvd_q.budget.evidence import BlockEvidence, LayerEvidence, sample_positions
from asvd_q.budget.offers import Offer, layer_offers, uniform_offers
from asvd_q.budget.trials import LayerTrials
from asvd_q.budget.vocabulary import (
    EmbeddingEvidence,
    VocabularyTrials,
    embedding_evidence,
    head_evidence,
)
from asvd_q.files import make_folder, write_text
from asvd_q.models.blockwise import BlockwiseModel, find_sites
from asvd_q.models.refs import WeightRef
from asvd_q.plan import LayerPlan
from asvd_q.progress import Progress, silent
from asvd_q.recipe import Recipe
from asvd_q.search.planning import covered_weights
from asvd_q.search.spectra import fisher_if_wanted
from asvd_q.statistics.backward import backward_through_block, backward_through_head, keep_inputs
from asvd_q.statistics.labels import NextTokenLoss

__all__ = ["LayerTried", "TrialCache", "sweep"]


class _Trial(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: LayerPlan
    bytes: int
    loss: float


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    tried: tuple[_Trial, ...]
    uniform: tuple[_Trial, ...]


@dataclass(frozen=True)
class LayerTried:
    """What is known of one layer.

    Attributes:
        tried: its candidates; none where no token reaches it.
        uniform: what plain quantization of the whole model would make of it.
    """

    tried: Sequence[Tried] = ()
    uniform: Sequence[Tried] = ()


class TrialCache:
    """What was tried of each layer, on disk."""

    def __init__(self, folder: Path, key: str) -> None:
        """Args: key: hash of all that the trials depend on."""
        self._key = key
        self._folder = folder / key[:16]

    def load(self) -> dict[str, LayerTried]:
        """Everything stored under the key, by layer."""
        found: dict[str, LayerTried] = {}
        for path in sorted(self._folder.glob("*.json")):
            try:
                entry = _Entry.model_validate_json(path.read_bytes())
            except ValidationError:  # damaged: tried again
                continue
            if entry.key == self._key:
                found[path.stem] = LayerTried(_read(entry.tried), _read(entry.uniform))
        return found

    def add(self, name: str, found: LayerTried) -> None:
        """Keep what was found of a layer."""
        make_folder(self._folder)
        entry = _Entry(key=self._key, tried=_kept(found.tried), uniform=_kept(found.uniform))
        write_text(self._folder / f"{name}.json", entry.model_dump_json() + "\n")


def _read(trials: Sequence[_Trial]) -> list[Tried]:
    return [(Offer(one.layer, one.bytes), one.loss) for one in trials]


def _kept(tried: Sequence[Tried]) -> tuple[_Trial, ...]:
    return tuple(_Trial(layer=offer.layer, bytes=offer.bytes, loss=loss) for offer, loss in tried)


def sweep(
    recipe: Recipe,
    model: BlockwiseModel,
    windows: Tensor,
    count: Count,
    cache: TrialCache,
    *,
    cost: Cost = stored,
    folder: Path | None = None,
    progress: Progress = silent,
) -> None:
    """Try what every layer has on offer, and keep what is found in the cache.

    One block is alive at a time, with the Gram matrices of its sites and a bounded sample of its
    tokens. The way is backwards: the head is first, and the embedding last; of a matrix that is
    both, what reaches the head is kept until then.

    Args:
        recipe: with `budget`, `quantize` and `calibration` sections.
        model: dense; nothing in it is changed.
        windows: int64 (samples, tokens).
        count: of the format that is chosen for.
        cost: of a form, under the budget that is spent.
        folder: an existing folder that keeps the blocks' inputs instead of memory.
        progress: called with the number of blocks done, forwards, and of layers tried.

    Raises:
        NumericsError: naming a layer whose inputs are not finite.
    """
    assert recipe.budget is not None
    assert recipe.calibration is not None
    known = cache.load()
    pending = [
        weight for weight in covered_weights(recipe, model.skeleton) if weight.name not in known
    ]
    if not pending:
        return
    inside = [weight for weight in pending if weight.block is not None]
    head, embedding = (
        next((weight for weight in pending if weight.vocabulary in parts), None)
        for parts in (("head", "tied"), ("embedding", "tied"))
    )
    section = recipe.decompose
    fisher = {}
    if section is not None:
        fisher = fisher_if_wanted(model, windows, inside, section, folder)
    positions = sample_positions(len(windows), windows.shape[1], recipe.budget.sample, recipe.seed)
    batches = torch.split(windows, recipe.calibration.batch_size)
    with model.outside() as outside:
        inputs = keep_inputs(
            model,
            outside,
            batches,
            folder=folder,
            progress=lambda done: progress("budget: forwards", done, len(model)),
        )
        gradients = inputs.pop()
        loss = NextTokenLoss(batches, "sampled", recipe.seed)
        at_head: LayerEvidence | None = None
        if head is None:
            backward_through_head(model, outside, gradients, loss)
        else:
            with head_evidence(
                model, outside, head, windows, sample=recipe.budget.sample, seed=recipe.seed
            ) as at_logits:
                backward_through_head(model, outside, gradients, loss, at_logits)
            [at_head] = at_logits.layers().values()
            del at_logits  # it knows the head's module
    done, total = 0, len(pending)
    if head is not None and head is not embedding:
        cache.add(head.name, _tried_codes(recipe, model, head, count, cost, None, at_head))
        at_head = None
        done += 1
        progress("budget: trying forms", done, total)
    blocks = [weight.block for weight in inside if weight.block is not None]
    first = 0 if embedding is not None else min(blocks, default=len(model))
    for index in reversed(range(first, len(model))):
        wanted = {weight.name: weight for weight in pending if weight.block == index}
        block = model.load_block(index)
        entering = inputs.pop()
        sites = find_sites(model, block, index, entering[0], set(wanted)) if wanted else []
        prefix = model.skeleton.block_name(index)
        with BlockEvidence(block, prefix, sites, positions, windows.shape, model.device) as probe:
            backward_through_block(model, block, index, entering, gradients, probe)
        del block, entering
        evidence = probe.layers()
        del probe  # it knows the block's modules
        for name, weight in wanted.items():
            found = LayerTried()
            if name in evidence:
                found = _tried(recipe, model, weight, count, evidence.pop(name), fisher, cost)
            cache.add(name, found)
            done += 1
            progress("budget: trying forms", done, total)
    if embedding is not None:
        with model.outside() as outside:
            looked_up = embedding_evidence(model, outside, embedding, batches, gradients, positions)
        found = _tried_codes(recipe, model, embedding, count, cost, looked_up, at_head)
        cache.add(embedding.name, found)
        progress("budget: trying forms", total, total)


@torch.no_grad()
def _tried(
    recipe: Recipe,
    model: BlockwiseModel,
    weight: WeightRef,
    count: Count,
    evidence: LayerEvidence,
    fisher: Mapping[str, Tensor],
    cost: Cost,
) -> LayerTried:
    matrix = model.source.matrix(weight)
    trials = LayerTrials(
        weight.name,
        matrix.to(model.device),
        evidence,
        recipe,
        count.float_type,
        fisher.get(weight.name),
    )
    offers = layer_offers(weight, recipe, count)
    tried = contest(offers, trials.loss, trials.bound, cost)
    uniform = [offer for offer in uniform_offers(weight, recipe, count) if _is_installed(offer)]
    return LayerTried(tried, try_all(uniform, trials.loss))


@torch.no_grad()
def _tried_codes(
    recipe: Recipe,
    model: BlockwiseModel,
    weight: WeightRef,
    count: Count,
    cost: Cost,
    embedding: EmbeddingEvidence | None,
    head: LayerEvidence | None,
) -> LayerTried:
    """Of an embedding, a head, or what is both."""
    matrix = model.source.matrix(weight).to(model.device)
    trials = VocabularyTrials(matrix, count.float_type, embedding=embedding, head=head)
    offers = layer_offers(weight, recipe, count)
    return LayerTried(contest(offers, trials.loss, lambda layer: 0.0, cost))


def _is_installed(offer: Offer) -> bool:
    """A yardstick whose package is missing is left out; a candidate's is asked for."""
    spec = offer.layer.quantization["weight"]
    return spec is None or spec.method != "nf4" or find_spec("bitsandbytes") is not None
