"""The loss that each layer's truncation costs: what is kept comes back, the rest is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from asvd_q.models.refs import WeightRef
from asvd_q.plan import factor_parameters
from asvd_q.recipe import DecomposeSection, SearchSection
from asvd_q.search.baselines import stable_rank_sensitivities
from asvd_q.search.cache import LossCache
from asvd_q.search.candidates import ratio_ranks
from asvd_q.search.context import SearchContext
from asvd_q.search.exact import exact_losses
from asvd_q.search.fast import fast_losses
from asvd_q.search.scoring import Metric
from asvd_q.search.spectra import singular_values

__all__ = [
    "Losses",
    "Ranks",
    "exact_sensitivities",
    "fast_sensitivities",
    "rank_grid",
    "sensitivities",
]

Ranks = Mapping[str, Sequence[int]]
"""Layer → ranks."""

Losses = dict[str, dict[int, float]]
"""Layer → rank → loss increase, nats per token."""


def rank_grid(weight: WeightRef, search: SearchSection, section: DecomposeSection) -> list[int]:
    """The ranks to choose from: those of the ratios, or every multiple that saves."""
    if search.sensitivity in ("exact", "stable_rank"):
        return ratio_ranks(weight.shape, search.ratios, section.rank_multiple)
    multiples = range(section.rank_multiple, min(weight.shape), section.rank_multiple)
    whole = weight.shape[0] * weight.shape[1]
    return [rank for rank in multiples if factor_parameters(weight.shape, rank) < whole]


def sensitivities(context: SearchContext, ranks: Ranks) -> Losses:
    """As the recipe wants them, one layer truncated at a time.

    Returns:
        The ranks asked for. A layer that no calibration token reaches is left out.

    Raises:
        RecipeError: nothing may be run, and one of them was not found before.
    """
    if context.search.sensitivity == "exact":
        return exact_sensitivities(context, ranks, context.search.metric)
    if context.search.sensitivity == "stable_rank":
        return _stable_rank_sensitivities(context, ranks)
    return fast_sensitivities(context, ranks)


def exact_sensitivities(context: SearchContext, ranks: Ranks, metric: Metric) -> Losses:
    """Measured, as `sensitivities` returns them."""
    search = {"sensitivity": "exact", "metric": metric}
    cache = LossCache(context.folder, context.key(search=search, seed=context.recipe.seed))

    def measure(folder: Path | None) -> None:
        exact_losses(
            context.model,
            context.windows,
            ranks,
            context.section,
            metric=metric,
            batch_size=context.calibration.batch_size,
            candidates_per_batch=context.search.candidates_per_batch,
            folder=folder,
            known=cache.load(),
            on_layer=cache.add,
            progress=context.progress,
        )

    return _complete(context, cache, ranks, measure)


def fast_sensitivities(context: SearchContext, ranks: Ranks) -> Losses:
    """Predicted, as `sensitivities` returns them."""
    search = {"sensitivity": "fast", "labels": context.search.labels}
    cache = LossCache(context.folder, context.key(search=search, seed=context.recipe.seed))

    def predict(folder: Path | None) -> None:
        predicted = fast_losses(
            context.model,
            context.windows,
            context.weights,
            context.section,
            labels=context.search.labels,
            seed=context.recipe.seed,
            batch_size=context.calibration.batch_size,
            folder=folder,
            progress=context.progress,
        )
        for name, curve in predicted.items():
            cache.add(name, {rank: float(curve[rank]) for rank in ranks[name]})

    return _complete(context, cache, ranks, predict)


def _stable_rank_sensitivities(context: SearchContext, ranks: Ranks) -> Losses:
    """From singular values alone; numbers without a unit instead of losses."""
    shapes = {weight.name: weight.shape for weight in context.weights}
    # The constant that makes them positive depends on which layers there are.
    search = {"sensitivity": "stable_rank", "layers": list(shapes)}
    cache = LossCache(context.folder, context.key(search=search))

    def measure(folder: Path | None) -> None:
        spectra = singular_values(
            context.model,
            context.windows,
            context.weights,
            context.section,
            batch_size=context.calibration.batch_size,
            folder=folder,
            progress=context.progress,
        )
        for name, found in stable_rank_sensitivities(spectra, shapes, ranks).items():
            cache.add(name, found)

    return _complete(context, cache, ranks, measure)


def _complete(
    context: SearchContext,
    cache: LossCache,
    ranks: Ranks,
    measure: Callable[[Path | None], None],
) -> Losses:
    """The cache's losses at the given ranks, after those it lacks were brought into it."""
    losses = cache.load()
    # A layer that no token reaches has an entry without losses.
    if any(
        name not in losses or (losses[name] and not set(wanted) <= losses[name].keys())
        for name, wanted in ranks.items()
        if wanted
    ):
        with context.running() as folder:
            measure(folder)
        losses = cache.load()
        for name in ranks:
            if ranks[name] and name not in losses:
                cache.add(name, {})
    return {
        name: {rank: losses[name][rank] for rank in wanted}
        for name, wanted in ranks.items()
        if losses.get(name)
    }
