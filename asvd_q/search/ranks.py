"""The rank search: sensitivities of all layers in, a rank for every layer out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from asvd_q import __version__
from asvd_q.errors import RecipeError
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.refs import WeightRef
from asvd_q.plan import FloatType, Plan, factor_parameters
from asvd_q.recipe import DecomposeSection, Recipe, SearchSection
from asvd_q.search.allocation import Allocation, Budget, LossBound, Target, allocate
from asvd_q.search.cache import LossCache
from asvd_q.search.candidates import Candidate, make_candidates, ratio_ranks
from asvd_q.search.exact import exact_losses
from asvd_q.search.fast import fast_losses
from asvd_q.search.planning import layer_bytes, make_plan

__all__ = ["SearchResult", "search_ranks", "with_ranks"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        shapes: of every searched layer, in model order.
        losses: layer → rank → loss increase, nats per token, as predicted or measured.
        candidates: layer → what the allocation chose from.
        allocation: what it chose.
    """

    shapes: Mapping[str, tuple[int, int]]
    losses: Mapping[str, Mapping[int, float]]
    candidates: Mapping[str, tuple[Candidate, ...]]
    allocation: Allocation

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every layer that is to be factorised."""
        chosen = self.allocation.chosen
        return {name: found.rank for name, found in chosen.items() if found.rank is not None}

    @property
    def kept(self) -> dict[str, float]:
        """Kept ratio of every searched layer; 1 where it stays dense."""
        chosen = self.allocation.chosen
        return {name: self.kept_ratio(name, found) for name, found in chosen.items()}

    def kept_ratio(self, name: str, candidate: Candidate) -> float:
        """Parameters of a layer's candidate over those of the layer."""
        rows, columns = self.shapes[name]
        return candidate.parameters / (rows * columns)


def search_ranks(
    recipe: Recipe,
    model: BlockwiseModel,
    windows: Tensor,
    float_type: FloatType,
    folder: Path,
    progress: Progress,
    *,
    known_only: bool = False,
) -> SearchResult:
    """Find out what truncating each layer costs, then spend the target where it costs least.

    Args:
        recipe: with `search`, `decompose` and `calibration` sections.
        model: the dense model.
        windows: calibration tokens, int64 (samples, tokens).
        folder: where the sensitivities are kept; an interrupted sweep goes on from there.
        known_only: run nothing and write nothing.

    Raises:
        RecipeError: `known_only`, and a sensitivity is missing.
        RankError: the target lies outside what the candidates reach.
    """
    search, section = recipe.search, recipe.decompose
    assert search is not None
    assert section is not None
    weights = [weight for weight in _inside(model) if section.selects(weight.name)]
    ranks = {weight.name: _grid(weight, search, section) for weight in weights}
    cache = LossCache(folder, _key(recipe, model, windows))
    losses = cache.load()
    missing = [
        name for name, wanted in ranks.items() if not set(wanted) <= set(losses.get(name, {}))
    ]
    if missing and known_only:
        raise RecipeError(
            "the ranks of this recipe come from a search that has not been run: run "
            "`asvd-q search` on it first"
        )
    if missing:
        _measure(recipe, model, windows, weights, ranks, cache, progress)
        losses = cache.load()
    dense = _plan(recipe, model, float_type, {})
    candidates = {
        weight.name: make_candidates(
            weight,
            # A layer that no calibration token reaches has no losses: it can only stay dense.
            {
                rank: losses[weight.name][rank]
                for rank in ranks[weight.name]
                if weight.name in losses
            },
            dense.layer(weight.name).predicted_bytes,
            partial(layer_bytes, weight, recipe, float_type),
        )
        for weight in weights
    }
    allocation = allocate(
        candidates, target=_target(search, dense, set(ranks)), method=search.method
    )
    shapes = {weight.name: weight.shape for weight in weights}
    return SearchResult(shapes, losses, candidates, allocation)


def with_ranks(recipe: Recipe, ranks: Mapping[str, int]) -> Recipe:
    """The recipe with the search replaced by the ranks that it found."""
    assert recipe.decompose is not None
    target = {"ranks": dict(ranks)} if ranks else {"kept_ratio": 1.0}
    decompose = recipe.decompose.model_copy(update=target)
    return recipe.model_copy(update={"search": None, "decompose": decompose})


def _inside(model: BlockwiseModel) -> list[WeightRef]:
    return [weight for weight in model.skeleton.weights if weight.block is not None]


def _grid(weight: WeightRef, search: SearchSection, section: DecomposeSection) -> list[int]:
    """The ranks to choose from: the ratios' for exact, every multiple for fast."""
    if search.sensitivity == "exact":
        return ratio_ranks(weight.shape, search.ratios, section.rank_multiple)
    multiples = range(section.rank_multiple, min(weight.shape), section.rank_multiple)
    whole = weight.shape[0] * weight.shape[1]
    return [rank for rank in multiples if factor_parameters(weight.shape, rank) < whole]


def _measure(
    recipe: Recipe,
    model: BlockwiseModel,
    windows: Tensor,
    weights: list[WeightRef],
    ranks: dict[str, list[int]],
    cache: LossCache,
    progress: Progress,
) -> None:
    """Bring the losses that the cache lacks into it."""
    search, section, calibration = recipe.search, recipe.decompose, recipe.calibration
    assert search is not None
    assert section is not None
    assert calibration is not None
    if search.sensitivity == "exact":
        exact_losses(
            model,
            windows,
            ranks,
            section,
            metric=search.metric,
            batch_size=calibration.batch_size,
            candidates_per_batch=search.candidates_per_batch,
            folder=None,
            known=cache.load(),
            on_layer=cache.add,
            progress=progress,
        )
        return
    predicted = fast_losses(
        model,
        windows,
        weights,
        section,
        labels=search.labels,
        seed=recipe.seed,
        batch_size=calibration.batch_size,
        folder=None,
        progress=progress,
    )
    for weight in weights:
        curve = predicted.get(weight.name)
        if curve is not None:
            cache.add(weight.name, {rank: float(curve[rank]) for rank in ranks[weight.name]})


def _key(recipe: Recipe, model: BlockwiseModel, windows: Tensor) -> str:
    """Hash of all that a loss depends on; not the target, nor the ranks that are asked for."""
    search, section = recipe.search, recipe.decompose
    assert search is not None
    assert section is not None
    fields = (
        ("sensitivity", "metric") if search.sensitivity == "exact" else ("sensitivity", "labels")
    )
    content = {
        "asvd_q": __version__,
        "torch": torch.__version__,
        "device": model.device.type,
        "dtype": str(model.dtype),
        "weights": model.source.identity.weights_sha256,
        "tokens": hashlib.sha256(windows.numpy().tobytes()).hexdigest(),
        "scaling": section.model_dump(include={"scaling", "alpha", "damping"}),
        "search": search.model_dump(include=set(fields)),
        "seed": recipe.seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _plan(
    recipe: Recipe, model: BlockwiseModel, float_type: FloatType, ranks: Mapping[str, int]
) -> Plan:
    return make_plan(with_ranks(recipe, ranks), model.source, model.skeleton, float_type)


def _target(search: SearchSection, dense: Plan, searched: set[str]) -> Target:
    """The recipe's target as what the searched layers may take together.

    Args:
        dense: the plan in which every layer stays dense.
        searched: layers that the search may factorise; the others count as they are.
    """
    if search.max_loss_increase is not None:
        return LossBound(search.max_loss_increase, unit="bytes")
    others = [layer for layer in dense if layer.name not in searched]
    if search.kept_ratio is not None:
        total = sum(layer.parameters for layer in dense)
        fixed = sum(layer.parameters for layer in others)
        return Budget(
            "parameters",
            search.kept_ratio * total - fixed,
            lambda amount: f"a kept ratio of {(amount + fixed) / total:.4f}",
        )
    assert search.size_bytes is not None
    stored = dense.other_bytes + sum(layer.predicted_bytes for layer in others)
    return Budget(
        "bytes",
        search.size_bytes - stored,
        lambda amount: f"{(amount + stored) / 2**20:.2f} MiB for the whole model",
    )
