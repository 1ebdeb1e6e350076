"""The rank search: sensitivities of all layers in, a rank for every layer out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from asvd_q.errors import RankError, RecipeError
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.plan import FloatType, LayerPlan
from asvd_q.progress import Progress
from asvd_q.recipe import Recipe
from asvd_q.search.allocation import Allocation, LossBound, Target, allocate
from asvd_q.search.candidates import Candidate
from asvd_q.search.context import SearchContext
from asvd_q.search.hybrid import hybrid_sensitivities
from asvd_q.search.offer import Offer
from asvd_q.search.perplexity import perplexity_bound, search_perplexity
from asvd_q.search.sensitivities import Losses, sensitivities
from asvd_q.search.targets import make_target
from asvd_q.search.verification import Verification, allocations_around, verified

__all__ = ["SearchResult", "search_ranks", "with_ranks"]

_NAMED = 5
"""Layers that a message names; it counts the rest."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        shapes: of every searched layer, in model order.
        losses: layer → rank → loss increase, nats per token, as predicted or measured.
        predicts_loss: False where these, and what is made of them, are numbers without a unit.
        candidates: layer → what the allocation chose from.
        allocation: what it chose.
        checked: of the losses, those that `sensitivity: hybrid` has measured.
        verification: what was measured of it, all its layers truncated; None where nothing was.
    """

    shapes: Mapping[str, tuple[int, int]]
    losses: Mapping[str, Mapping[int, float]]
    candidates: Mapping[str, tuple[Candidate, ...]]
    allocation: Allocation
    predicts_loss: bool = True
    checked: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    verification: Verification | None = None

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every layer that is to be factorised."""
        return self.allocation.ranks

    @property
    def predicted_loss(self) -> float | None:
        """Increase of the mean next-token loss, nats per token; None where none is predicted."""
        return self.allocation.loss if self.predicts_loss else None

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
    pinned: Mapping[str, LayerPlan] | None = None,
    known_only: bool = False,
) -> SearchResult:
    """Find out what truncating each layer costs, then spend the target where it costs least.

    Args:
        recipe: with `search`, `decompose` and `calibration` sections.
        model: the dense model.
        windows: calibration tokens, int64 (samples, tokens).
        folder: where all that is measured is kept; an interrupted search goes on from there.
        pinned: layers that cannot be chosen for any more, as they are; for a budget only.
        known_only: run nothing and write nothing.

    Raises:
        RecipeError: `known_only`, and what the ranks depend on was not measured before; or no
            layer is included.
        RankError: the target lies outside what the candidates reach; the message names the pinned
            layers.
    """
    context = SearchContext(recipe, model, windows, folder, progress, known_only)
    context.remove_scratch()
    search, offer = context.search, Offer(context, float_type, pinned or {})
    if not context.weights:
        raise RecipeError(
            "decompose.include and decompose.exclude leave no layer to search ranks for"
        )
    target: Target
    if search.perplexity is None:
        target = make_target(search, offer.dense, set(offer.ranks))
    else:
        target = LossBound(perplexity_bound(context, offer.smallest()))

    def solve(candidates: Mapping[str, Sequence[Candidate]]) -> Allocation:
        try:
            return allocate(candidates, target=target, method=search.method)
        except RankError as error:
            raise RankError(f"{error}{_after_pinning(pinned or {})}") from None

    checked: Losses = {}
    if search.sensitivity == "hybrid":
        losses, checked = hybrid_sensitivities(
            context, offer.ranks, offer.candidates, solve, target.unit
        )
    else:
        losses = sensitivities(context, offer.ranks)
    candidates = offer.candidates(losses)
    verification: Verification | None = None
    if search.perplexity is not None:
        verification = search_perplexity(context, candidates, target.limit)
        allocation = verification.chosen.allocation
    else:
        allocation = solve(candidates)
        if search.verify:
            others = allocations_around(candidates, allocation, target.unit, search.method)
            verification = verified(context, allocation, others)
    return SearchResult(
        shapes={weight.name: weight.shape for weight in context.weights},
        losses=losses,
        candidates=candidates,
        allocation=allocation,
        predicts_loss=search.predicts_loss,
        checked=checked,
        verification=verification,
    )


def with_ranks(
    recipe: Recipe, ranks: Mapping[str, int], *, in_floats: Collection[str] = ()
) -> Recipe:
    """The recipe with the search replaced by the ranks that it found.

    Args:
        in_floats: layers that are not to be quantized.
    """
    assert recipe.decompose is not None
    target = {"ranks": dict(ranks)} if ranks else {"kept_ratio": 1.0}
    decompose = recipe.decompose.model_copy(update=target)
    quantize = recipe.quantize
    if quantize is not None and in_floats:
        exclude = (*quantize.exclude, *in_floats)
        quantize = quantize.model_copy(update={"exclude": exclude})
    return recipe.model_copy(update={"search": None, "decompose": decompose, "quantize": quantize})


def _after_pinning(pinned: Mapping[str, LayerPlan]) -> str:
    """The end of a message: what the target was solved around."""
    if not pinned:
        return ""
    named = [f"{name} ({layer.reason})" for name, layer in pinned.items()]
    more = f" (and {len(named) - _NAMED} more)" if len(named) > _NAMED else ""
    return f". These layers could not be compressed as planned: {', '.join(named[:_NAMED])}{more}"
