"""Recipes and layers that tests of budgets begin with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from asvd_q.models.refs import Site, WeightRef
from asvd_q.plan import LayerPlan, QuantSpec, Slot
from asvd_q.recipe import Recipe
from asvd_q.search.planning import plan_layer
from asvd_q.statistics.collectors import SiteCollector, SiteStatistics

__all__ = ["dense", "factors", "layer_ref", "recipe", "statistics_of", "without_reasons"]


def recipe(**sections: Any) -> Recipe:
    """A small recipe with a budget, its sections replaced or, by None, left out."""
    fields: dict[str, Any] = {
        "model": {"path": "somewhere"},
        "calibration": {"corpus": "python-docs", "samples": 1, "window": 8, "batch_size": 2},
        "decompose": {"rank_multiple": 8},
        "budget": {"bits_per_weight": 4, "bits": [3, 4], "group_sizes": [16], "ranks": 2},
        "quantize": {"method": "rtn"},
    }
    return Recipe.model_validate(fields | sections)


def layer_ref(shape: tuple[int, int] = (64, 96), name: str = "model.layers.0.proj") -> WeightRef:
    return WeightRef(name=name, module=name, shape=shape, block=0)


def dense(weight: WeightRef, spec: QuantSpec | None) -> LayerPlan:
    return plan_layer(weight, {"weight": spec}, None, "float32")


def factors(
    weight: WeightRef, rank: int, b: QuantSpec | None, a: QuantSpec | None = None
) -> LayerPlan:
    """Factors; A is quantized as B is, unless it is told otherwise."""
    slots: Mapping[Slot, QuantSpec | None] = {"B": b, "A": a or b}
    return plan_layer(weight, slots, rank, "float32")


def statistics_of(inputs: Tensor) -> SiteStatistics:
    """What a collector makes of inputs (tokens, in)."""
    collector = SiteCollector(Site("site", 0, ("site",), inputs.shape[1]), torch.device("cpu"))
    collector.add(inputs)
    return collector.result()


def without_reasons(layers: Any) -> list[LayerPlan]:
    return [layer.model_copy(update={"reason": None}) for layer in layers]
