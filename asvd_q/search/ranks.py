"""The rank search: sensitivities of all layers in, a rank for every layer out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from asvd_q.errors import RecipeError
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.plan import FloatType, Plan
from asvd_q.recipe import Recipe
from asvd_q.search.allocation import Allocation, LossBound, Target, allocate
from asvd_q.search.candidates import Candidate, make_candidates
from asvd_q.search.context import Progress, SearchContext
from asvd_q.search.hybrid import hybrid_sensitivities
from asvd_q.search.perplexity import perplexity_bound, search_perplexity
from asvd_q.search.planning import layer_bytes, make_plan
from asvd_q.search.sensitivities import Losses, Ranks, rank_grid, sensitivities
from asvd_q.search.targets import make_target
from asvd_q.search.verification import Verification, allocations_around, verified

__all__ = ["SearchResult", "search_ranks", "with_ranks"]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        shapes: of every searched layer, in model order.
        losses: layer → rank → loss increase, nats per token, as predicted or measured.
        candidates: layer → what the allocation chose from.
        allocation: what it chose.
        checked: of the losses, those that `sensitivity: hybrid` has measured.
        verification: what was measured of it, all its layers truncated; None where nothing was.
    """

    shapes: Mapping[str, tuple[int, int]]
    losses: Mapping[str, Mapping[int, float]]
    candidates: Mapping[str, tuple[Candidate, ...]]
    allocation: Allocation
    checked: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    verification: Verification | None = None

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every layer that is to be factorised."""
        return self.allocation.ranks

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
        folder: where all that is measured is kept; an interrupted search goes on from there.
        known_only: run nothing and write nothing.

    Raises:
        RecipeError: `known_only`, and what the ranks depend on was not measured before; or no
            layer is included.
        RankError: the target lies outside what the candidates reach.
    """
    context = SearchContext(recipe, model, windows, folder, progress, known_only)
    context.remove_scratch()
    search, weights = context.search, context.weights
    dense = _plan(recipe, model, float_type, {})
    if not weights:
        raise RecipeError(
            "decompose.include and decompose.exclude leave no layer to search ranks for"
        )
    ranks = {weight.name: rank_grid(weight, search, context.section) for weight in weights}

    def offer(losses: Losses) -> dict[str, tuple[Candidate, ...]]:
        return {
            weight.name: make_candidates(
                weight,
                # A layer that no calibration token reaches has no losses: it can only stay dense.
                losses.get(weight.name, {}),
                dense.layer(weight.name).predicted_bytes,
                partial(layer_bytes, weight, recipe, float_type),
            )
            for weight in weights
        }

    target: Target
    if search.perplexity is None:
        target = make_target(search, dense, set(ranks))
    else:
        target = LossBound(perplexity_bound(context, _smallest(offer(_alike(ranks)))))

    def solve(candidates: Mapping[str, Sequence[Candidate]]) -> Allocation:
        return allocate(candidates, target=target, method=search.method)

    checked: Losses = {}
    if search.sensitivity == "hybrid":
        losses, checked = hybrid_sensitivities(context, ranks, offer, solve, target.unit)
    else:
        losses = sensitivities(context, ranks)
    candidates = offer(losses)
    verification: Verification | None = None
    if search.perplexity is not None:
        verification = search_perplexity(context, candidates, target.limit)
        allocation = verification.chosen.allocation
    else:
        allocation = solve(candidates)
        if search.verify:
            others = allocations_around(candidates, allocation, target.unit, search.method)
            verification = verified(context, allocation, others)
    shapes = {weight.name: weight.shape for weight in weights}
    return SearchResult(shapes, losses, candidates, allocation, checked, verification)


def with_ranks(recipe: Recipe, ranks: Mapping[str, int]) -> Recipe:
    """The recipe with the search replaced by the ranks that it found."""
    assert recipe.decompose is not None
    target = {"ranks": dict(ranks)} if ranks else {"kept_ratio": 1.0}
    decompose = recipe.decompose.model_copy(update=target)
    return recipe.model_copy(update={"search": None, "decompose": decompose})


def _smallest(candidates: Mapping[str, Sequence[Candidate]]) -> dict[str, int]:
    """Rank of every layer in its smallest form."""
    return {name: forms[-1].rank for name, forms in candidates.items() if forms[-1].rank}


def _alike(ranks: Ranks) -> Losses:
    """Losses that tell no rank from another: of those on offer only the smallest remain."""
    return {name: dict.fromkeys(wanted, 1.0) for name, wanted in ranks.items()}


def _plan(
    recipe: Recipe, model: BlockwiseModel, float_type: FloatType, ranks: Mapping[str, int]
) -> Plan:
    return make_plan(with_ranks(recipe, ranks), model.source, model.skeleton, float_type)
