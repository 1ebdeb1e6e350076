"""Trials of all layers, block by block, from one pass forwards and one backwards.

    <folder>/<key>/<layer>.json     {"key": …, "tried": [{"layer": …, "bytes": …, "loss": …}, …]}

What was tried of a layer is kept as soon as it is known, under a key that covers all that it
depends on; a sweep that was interrupted goes on with the layers that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from asvd_q.budget.contest import Tried, contest
from asvd_q.budget.evidence import BlockEvidence, LayerEvidence, sample_positions
from asvd_q.budget.offers import Offer
from asvd_q.budget.trials import LayerTrials
from asvd_q.files import make_folder, write_text
from asvd_q.models.blockwise import BlockwiseModel, find_sites
from asvd_q.models.refs import WeightRef
from asvd_q.plan import FloatType, LayerPlan
from asvd_q.quantization import TORCH_TYPES
from asvd_q.recipe import Recipe
from asvd_q.search.spectra import fisher_if_wanted
from asvd_q.statistics.backward import backward_through_block, backward_through_head, keep_inputs
from asvd_q.statistics.labels import NextTokenLoss

__all__ = ["TrialCache", "sweep"]

Progress = Callable[[str, int, int], None]


class _Trial(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: LayerPlan
    bytes: int
    loss: float


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    tried: tuple[_Trial, ...]


class TrialCache:
    """What was tried of each layer, on disk."""

    def __init__(self, folder: Path, key: str) -> None:
        """Args: key: hash of all that the trials depend on."""
        self._key = key
        self._folder = folder / key[:16]

    def load(self) -> dict[str, list[Tried]]:
        """Everything stored under the key, by layer."""
        found: dict[str, list[Tried]] = {}
        for path in sorted(self._folder.glob("*.json")):
            try:
                entry = _Entry.model_validate_json(path.read_bytes())
            except ValidationError:  # damaged: tried again
                continue
            if entry.key == self._key:
                found[path.stem] = [(Offer(one.layer, one.bytes), one.loss) for one in entry.tried]
        return found

    def add(self, name: str, tried: Sequence[Tried]) -> None:
        """Keep a layer's trials; none at all for one that no token reaches."""
        make_folder(self._folder)
        trials = tuple(
            _Trial(layer=offer.layer, bytes=offer.bytes, loss=loss) for offer, loss in tried
        )
        text = _Entry(key=self._key, tried=trials).model_dump_json()
        write_text(self._folder / f"{name}.json", text + "\n")


def sweep(
    recipe: Recipe,
    model: BlockwiseModel,
    windows: Tensor,
    float_type: FloatType,
    offers: Mapping[str, Sequence[Offer]],
    cache: TrialCache,
    *,
    folder: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> None:
    """Try what every layer has on offer, and keep what is found in the cache.

    One block is alive at a time, with the Gram matrices of its sites and a bounded sample of its
    tokens.

    Args:
        recipe: with `budget`, `quantize` and `calibration` sections.
        model: dense; nothing in it is changed.
        windows: int64 (samples, tokens).
        float_type: of what is not quantized.
        offers: by layer.
        folder: an existing folder that keeps the blocks' inputs instead of memory.
        progress: called with the number of blocks done, forwards, and of layers tried.

    Raises:
        NumericsError: naming a layer whose inputs are not finite.
    """
    assert recipe.budget is not None
    assert recipe.calibration is not None
    known = cache.load()
    pending = [
        weight
        for weight in model.skeleton.weights
        if weight.name in offers and weight.name not in known
    ]
    if not pending:
        return
    section = recipe.decompose
    fisher = {}
    if section is not None:
        fisher = fisher_if_wanted(model, windows, pending, section, folder)
    positions = sample_positions(len(windows), windows.shape[1], recipe.budget.sample, recipe.seed)
    predicted = windows.shape[0] * (windows.shape[1] - 1)
    batches = torch.split(windows, recipe.calibration.batch_size)
    with model.outside() as outside:
        model.embed(outside, windows[:1])  # the shape that sites are found on
        inputs = keep_inputs(
            model,
            outside,
            batches,
            folder=folder,
            progress=lambda done: progress("budget: forwards", done, len(model)),
        )
        gradients = inputs.pop()
        backward_through_head(
            model, outside, gradients, NextTokenLoss(batches, "sampled", recipe.seed)
        )
    first = min(weight.block for weight in pending if weight.block is not None)
    done, total = 0, len(pending)
    for index in reversed(range(first, len(model))):
        wanted = {weight.name: weight for weight in pending if weight.block == index}
        block = model.load_block(index)
        entering = inputs.pop()
        sites = find_sites(model, block, index, entering[0][:1], set(wanted)) if wanted else []
        prefix = model.skeleton.block_name(index)
        with BlockEvidence(block, prefix, sites, positions, predicted, model.device) as probe:
            backward_through_block(model, block, index, entering, gradients, probe)
        del block, entering
        evidence = probe.layers()
        for name, weight in wanted.items():
            tried: list[Tried] = []
            if name in evidence:
                tried = _tried(
                    recipe, model, weight, float_type, evidence.pop(name), fisher, offers[name]
                )
            cache.add(name, tried)
            done += 1
            progress("budget: trying forms", done, total)


@torch.no_grad()
def _tried(
    recipe: Recipe,
    model: BlockwiseModel,
    weight: WeightRef,
    float_type: FloatType,
    evidence: LayerEvidence,
    fisher: Mapping[str, Tensor],
    offers: Sequence[Offer],
) -> list[Tried]:
    matrix = weight.take(model.source.tensor(weight.tensor_name)).to(TORCH_TYPES[float_type])
    trials = LayerTrials(
        weight.name,
        matrix.to(model.device),
        evidence,
        recipe.decompose,
        seed=recipe.seed,
        fisher=fisher.get(weight.name),
    )
    return contest(offers, trials.loss, lambda rank: float(trials.truncation[rank]))
