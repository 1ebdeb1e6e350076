"""From a recipe with a budget to the forms of all layers; what was tried before comes back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from asvd_q.budget.choice import Choice, Offering, choose, make_target
from asvd_q.budget.contest import stored
from asvd_q.budget.counting import Count
from asvd_q.budget.hybrid import checked
from asvd_q.budget.sweep import LayerTried, TrialCache, sweep
from asvd_q.budget.timing import KernelTimes, kernel_times
from asvd_q.errors import RankError, RecipeError
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.plan import LayerPlan
from asvd_q.progress import Progress
from asvd_q.recipe import Recipe
from asvd_q.search.allocation import Target
from asvd_q.search.context import hidden_states, measured_key
from asvd_q.search.planning import float_plan

__all__ = ["BudgetResult", "budget_offering", "solve_budget"]

_NOT_RUN = (
    "this recipe's budget needs a search that has not been run: run `asvd-q search` on it first"
)


@dataclass(frozen=True)
class BudgetResult:
    """What a budget was spent on.

    Attributes:
        tried: of every layer.
        offering: what the choice was made from.
    """

    tried: Mapping[str, LayerTried]
    offering: Offering
    choice: Choice

    @property
    def predicted_loss(self) -> float:
        """Increase of the mean next-token loss, nats per token."""
        return self.choice.loss


def budget_offering(
    recipe: Recipe,
    model: BlockwiseModel,
    windows: Tensor,
    count: Count,
    folder: Path,
    progress: Progress,
    *,
    pinned: Mapping[str, LayerPlan] | None = None,
    known_only: bool = False,
) -> tuple[Mapping[str, LayerTried], Offering]:
    """Everything there is to choose from under a recipe, whatever its target.

    Args:
        recipe: with `budget`, `quantize` and `calibration` sections.
        model: the dense model.
        windows: calibration tokens, int64 (samples, tokens).
        folder: where all that is tried or timed is kept; an interrupted sweep goes on from there.
        pinned: layers that cannot be chosen for any more, as they are.
        known_only: run nothing and write nothing.

    Raises:
        RecipeError: `known_only`, and something was not tried before; times are asked for, and the
            format's runtime cannot be timed.
        NumericsError: naming a layer whose inputs are not finite.
    """
    assert recipe.calibration is not None
    times = kernel_times(
        recipe, model.skeleton.by_name.values(), count, folder, known_only=known_only
    )
    cache = TrialCache(folder, _key(recipe, model, windows, count, times))
    base = float_plan(recipe, model.source, model.skeleton, count.float_type)
    tried = cache.load()
    if any(layer.name not in tried for layer in base):
        if known_only:
            raise RecipeError(_NOT_RUN)
        with hidden_states(recipe.calibration, folder) as scratch:
            sweep(
                recipe,
                model,
                windows,
                count,
                cache,
                cost=stored if times is None else times.cost,
                folder=scratch,
                progress=progress,
            )
        tried = cache.load()
    return tried, Offering.of(base, tried, count, pinned or {}, times)


def solve_budget(
    recipe: Recipe,
    model: BlockwiseModel,
    windows: Tensor,
    count: Count,
    folder: Path,
    progress: Progress,
    *,
    target: Target | None = None,
    pinned: Mapping[str, LayerPlan] | None = None,
    known_only: bool = False,
) -> BudgetResult:
    """Try what the layers may become, then spend the budget where it helps most.

    Args:
        target: instead of the recipe's.

    Raises:
        RankError: the target lies outside what the candidates reach.
        RecipeError, NumericsError: as `budget_offering`.
    """
    assert recipe.budget is not None
    tried, offering = budget_offering(
        recipe, model, windows, count, folder, progress, pinned=pinned, known_only=known_only
    )
    wanted = target or make_target(recipe.budget, offering)

    def solved(offering: Offering) -> Choice:
        try:
            return choose(offering, wanted)
        except RankError as error:
            around = f", around {', '.join(pinned)}" if pinned else ""
            raise RankError(f"budget: {error}{around}") from None

    choice = solved(offering)
    if recipe.budget.hybrid:
        offering = _checked(recipe, model, windows, offering, choice, folder, known_only, progress)
        choice = solved(offering)
    return BudgetResult(tried, offering, choice)


def _checked(
    recipe: Recipe,
    model: BlockwiseModel,
    windows: Tensor,
    offering: Offering,
    choice: Choice,
    folder: Path,
    known_only: bool,
    progress: Progress,
) -> Offering:
    assert recipe.calibration is not None
    key = _key(recipe, model, windows, offering.count, offering.times)
    place = nullcontext() if known_only else hidden_states(recipe.calibration, folder)
    with place as scratch:
        found = checked(
            recipe,
            model,
            windows,
            offering,
            choice,
            folder,
            key,
            known_only=known_only,
            scratch=scratch,
            progress=progress,
        )
    if found is None:
        raise RecipeError(_NOT_RUN)
    return found


def _key(
    recipe: Recipe,
    model: BlockwiseModel,
    windows: Tensor,
    count: Count,
    times: KernelTimes | None,
) -> str:
    """Hash of all that trials depend on; the target is no part of it, but what it is spent by."""
    budget, quantize, section = recipe.budget, recipe.quantize, recipe.decompose
    assert budget is not None
    assert quantize is not None
    options = None if count.exporter is None else count.exporter.options.model_dump(mode="json")
    return measured_key(
        model,
        windows,
        budget=budget.model_dump(
            mode="json",
            include={"format", "bits", "group_sizes", "ranks", "correction_ranks", "sample"},
        ),
        options=options,
        times=None if times is None else times.setting,
        float_type=count.float_type,
        quantize=quantize.model_dump(mode="json", exclude={"refit", "refit_damping", "max_error"}),
        decompose=None
        if section is None
        else section.model_dump(mode="json", exclude={"refit", "refit_damping"}),
        correct=None if recipe.correct is None else recipe.correct.model_dump(mode="json"),
        seed=recipe.seed,
    )
