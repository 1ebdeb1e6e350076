"""The rank search: sensitivities of all layers in, a rank for every layer out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from asvd_q.errors import RecipeError
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.plan import FloatType, Plan
from asvd_q.recipe import Recipe
from asvd_q.search.allocation import Allocation, allocate
from asvd_q.search.candidates import Candidate, make_candidates
from asvd_q.search.context import Progress, SearchContext
from asvd_q.search.planning import layer_bytes, make_plan
from asvd_q.search.sensitivities import exact_sensitivities, fast_sensitivities, rank_grid
from asvd_q.search.targets import make_target

__all__ = ["SearchResult", "search_ranks", "with_ranks"]


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
        RecipeError: `known_only`, and a sensitivity is missing; or no layer is included.
        RankError: the target lies outside what the candidates reach.
    """
    context = SearchContext(recipe, model, windows, folder, progress, known_only)
    search, weights = context.search, context.weights
    dense = _plan(recipe, model, float_type, {})
    if not weights:
        raise RecipeError(
            "decompose.include and decompose.exclude leave no layer to search ranks for"
        )
    ranks = {weight.name: rank_grid(weight, search, context.section) for weight in weights}
    if search.sensitivity == "exact":
        losses = exact_sensitivities(context, ranks, search.metric)
    else:
        losses = fast_sensitivities(context, ranks)
    candidates = {
        weight.name: make_candidates(
            weight,
            # A layer that no calibration token reaches has no losses: it can only stay dense.
            losses.get(weight.name, {}),
            dense.layer(weight.name).predicted_bytes,
            partial(layer_bytes, weight, recipe, float_type),
        )
        for weight in weights
    }
    allocation = allocate(
        candidates, target=make_target(search, dense, set(ranks)), method=search.method
    )
    shapes = {weight.name: weight.shape for weight in weights}
    return SearchResult(shapes, losses, candidates, allocation)


def with_ranks(recipe: Recipe, ranks: Mapping[str, int]) -> Recipe:
    """The recipe with the search replaced by the ranks that it found."""
    assert recipe.decompose is not None
    target = {"ranks": dict(ranks)} if ranks else {"kept_ratio": 1.0}
    decompose = recipe.decompose.model_copy(update=target)
    return recipe.model_copy(update={"search": None, "decompose": decompose})


def _plan(
    recipe: Recipe, model: BlockwiseModel, float_type: FloatType, ranks: Mapping[str, int]
) -> Plan:
    return make_plan(with_ranks(recipe, ranks), model.source, model.skeleton, float_type)
