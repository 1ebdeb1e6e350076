"""What the layers of a model can become under a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from asvd_q.models.refs import WeightRef
from asvd_q.plan import FloatType, LayerPlan
from asvd_q.search.candidates import Candidate, make_candidates, monotone_losses
from asvd_q.search.context import SearchContext
from asvd_q.search.planning import layer_bytes, make_plan
from asvd_q.search.sensitivities import Losses, Ranks, rank_grid

__all__ = ["Offer"]


class Offer:
    """The candidates of every searched layer, once their losses are known.

    Attributes:
        dense: the plan in which every layer stays dense.
        ranks: layer → the ranks to find losses for.
    """

    def __init__(
        self, context: SearchContext, float_type: FloatType, pinned: Mapping[str, LayerPlan]
    ) -> None:
        """Build the dense plan.

        Args:
            float_type: of everything that is not quantized.
            pinned: layers that have but one form to offer.

        Raises:
            RecipeError: a pattern of the recipe that matches no layer.
        """
        # The dense model is what a kept ratio of 1 plans.
        section = context.section.model_copy(update={"kept_ratio": 1.0})
        self._recipe = context.recipe.model_copy(update={"search": None, "decompose": section})
        self._weights = context.weights
        self._float_type = float_type
        self._pinned = pinned
        model = context.model
        dense = make_plan(self._recipe, model.source, model.skeleton, float_type)
        self.dense = dense.with_layers(
            {name: layer for name, layer in pinned.items() if layer.form == "dense"}
        )
        self.ranks: Ranks = {
            weight.name: rank_grid(weight, context.search, context.section)
            for weight in context.weights
        }

    def candidates(self, losses: Losses) -> dict[str, tuple[Candidate, ...]]:
        """What the allocation chooses from.

        Args:
            losses: of `ranks`; a layer without any, because no calibration token reaches it,
                can only stay dense.
        """
        return {
            weight.name: self._candidates(weight, losses.get(weight.name, {}))
            for weight in self._weights
        }

    def smallest(self) -> Mapping[str, int]:
        """Layer → rank, every layer in its smallest form; those that must stay dense left out."""
        # Where all ranks lose the same, only the smallest is worth offering.
        alike = {name: dict.fromkeys(wanted, 1.0) for name, wanted in self.ranks.items()}
        smallest = {name: forms[-1].rank for name, forms in self.candidates(alike).items()}
        return {name: rank for name, rank in smallest.items() if rank is not None}

    def _candidates(self, weight: WeightRef, losses: Mapping[int, float]) -> tuple[Candidate, ...]:
        layer = self._pinned.get(weight.name)
        if layer is not None:
            loss = 0.0 if layer.rank is None else monotone_losses(losses)[layer.rank]
            return (Candidate(layer.rank, layer.parameters, layer.predicted_bytes, loss),)
        return make_candidates(
            weight,
            losses,
            self.dense.layer(weight.name).predicted_bytes,
            partial(layer_bytes, weight, self._recipe, self._float_type),
        )
