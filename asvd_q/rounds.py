"""Search, compress, look; and solve the target again where what came of it is not within it.

A layer whose decomposition or quantization fails takes more than the search counted on. Where
that breaks the budget, the layer is pinned to what it has become, and the rest has to make up
for it. Every round pins a layer, or pins one to a larger form, so there is a last one. A bound on
the measured perplexity takes rounds of its own.

    <run>/rounds.json     {"setbacks": {key of a store: [layer, …]},
                           "losses": {key of a store: nats per token},
                           "dense": {key of a model and tokens: nats per token}}

What came of a round is kept under the key of its store, so that a run which goes on, or is
repeated, comes to the last round without compressing anything for the others again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from asvd_q.budget.choice import Choice, is_within
from asvd_q.budget.explicit import with_plan
from asvd_q.budget.format import format_count
from asvd_q.budget.measured import next_limit
from asvd_q.budget.solving import BudgetResult, solve_budget
from asvd_q.budget.timing import kernel_times
from asvd_q.compressing import make_store, store_key
from asvd_q.compression import check_weights
from asvd_q.compression.shared import SharedStatistics
from asvd_q.errors import RankError, RecipeError
from asvd_q.evaluation.quality import TokenWindows, evaluate_quality
from asvd_q.evaluation.runners import model_runner
from asvd_q.files import write_text
from asvd_q.models.assemble import Replaced
from asvd_q.plan import LayerPlan, Plan
from asvd_q.preparation import Prepared, require_exports
from asvd_q.progress import Progress
from asvd_q.quantization import TORCH_TYPES
from asvd_q.recipe import Recipe
from asvd_q.report.budget import write_budget
from asvd_q.report.resources import StageMeter
from asvd_q.report.search import SEARCH, write_search
from asvd_q.search.allocation import LossBound
from asvd_q.search.context import measured_key
from asvd_q.search.ranks import SearchResult, search_ranks, with_ranks
from asvd_q.search.targets import is_met
from asvd_q.store import Store

__all__ = ["ROUNDS", "Solution", "search_and_compress", "solve", "write_result"]

ROUNDS = "rounds.json"

logger = logging.getLogger("asvd_q")


class _Rounds(BaseModel):
    """What became of stores, by their keys.

    Attributes:
        setbacks: the layers that kept a form which was not planned, as they are.
        losses: mean next-token loss on the calibration tokens, nats.
        dense: that of the dense model, by the key of the model and the tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    setbacks: dict[str, tuple[LayerPlan, ...]] = {}
    losses: dict[str, float] = {}
    dense: dict[str, float] = {}


@dataclass(frozen=True)
class Solution:
    """What a search has come to.

    Attributes:
        prepared: with the forms that were found, and the layers that they were solved around.
        earlier: keys of the stores of earlier rounds, which this one takes the place of.
        settled: False where the store has to be looked at before it is known whether it will do.
    """

    prepared: Prepared
    result: SearchResult | BudgetResult
    earlier: tuple[str, ...] = ()
    settled: bool = True


@dataclass(frozen=True)
class _Measured:
    """A model under a budget, and the loss increase that was measured of it, nats per token."""

    solution: Solution
    loss: float

    @property
    def choice(self) -> Choice:
        assert isinstance(self.solution.result, BudgetResult)
        return self.solution.result.choice


def solve(
    prepared: Prepared,
    windows: Tensor,
    folder: Path,
    progress: Progress,
    *,
    known_only: bool = False,
) -> Solution:
    """Find the forms for a recipe's target, given all that earlier rounds in the folder found out.

    Args:
        prepared: of a recipe that searches.
        windows: calibration tokens, int64 (samples, tokens).
        folder: the run's.
        known_only: run nothing and write nothing.

    Raises:
        NumericsError: NaN or infinity in the weights.
        RecipeError: `known_only`, and something was not measured before.
        RankError: the target cannot be reached, or not any more; the message names the layers
            that it had to be solved around.
    """
    if not known_only:
        check_weights(prepared.model(), progress)
        if prepared.recipe.budget is not None and prepared.recipe.budget.needs_dense_loss:
            _dense_loss(prepared, windows, folder, progress)
    known = _read(folder)
    dense = known.dense.get(_dense_key(prepared, windows))
    pinned: dict[str, LayerPlan] = {}
    earlier: list[str] = []
    bound = _measured_bound(prepared.recipe, dense)
    seen: list[_Measured] = []
    while True:
        limit = None
        if bound is not None:
            limit = next_limit(bound, [(one.choice.loss, one.loss) for one in seen])
            if limit is None:
                return _smallest(seen, bound, earlier)
        result = _result(prepared, windows, folder, progress, limit, pinned, known_only)
        solved = replace(prepared, recipe=_explicit(prepared, result, pinned), pinned=dict(pinned))
        key = store_key(solved, windows)
        solution = Solution(solved, result, tuple(earlier))
        setbacks = {layer.name: layer for layer in known.setbacks.get(key, ())}
        if setbacks and not _meets(prepared, solved.plan, setbacks, folder, known_only):
            pinned |= setbacks
            seen.clear()
        elif bound is None:
            return solution
        elif key not in known.losses or dense is None:
            return replace(solution, settled=False)
        else:
            if any(one.solution.prepared.plan == solved.plan for one in seen):
                # The steps between neighbouring models are larger than what is left to gain.
                return _smallest(seen, bound, earlier)
            seen.append(_Measured(solution, known.losses[key] - dense))
        earlier.append(key)


def search_and_compress(
    prepared: Prepared,
    windows: Tensor,
    folder: Path,
    meter: StageMeter,
    progress: Progress,
    *,
    shared: SharedStatistics | None = None,
) -> tuple[Prepared, Store]:
    """Carry out a recipe that searches, until what is stored meets its target.

    Args: as of `solve`, and `shared` as in `compress`.

    Returns:
        What was carried out in the end, and the finished store.

    Raises:
        RankError, StoreError, NumericsError: as `solve` and `make_store`.
        ExportError: an exporter cannot hold what is to be compressed.
    """
    while True:
        with meter.stage("search"):
            found = solve(prepared, windows, folder, progress)
            write_result(found.result, folder)
            require_exports(found.prepared)
        with meter.stage("compress"):
            store = make_store(
                found.prepared,
                folder,
                windows,
                progress,
                replacing=found.earlier,
                shared=shared,
            )
        setbacks = store.setbacks
        if setbacks and not _meets(prepared, store.plan, setbacks, folder):
            names = ", ".join(setbacks)
            logger.info("not compressed as planned, so the target is solved again: %s", names)
            _remember(folder, setbacks={store.key: tuple(setbacks.values())})
        elif found.settled:
            return found.prepared, store
        else:
            with meter.stage("search"):
                _measure(prepared, store, windows, folder, progress)


def write_result(result: SearchResult | BudgetResult, folder: Path) -> None:
    """Write what was found into a run folder."""
    if isinstance(result, BudgetResult):
        write_budget(result, folder / SEARCH)
    else:
        write_search(result, folder / SEARCH)


def _result(
    prepared: Prepared,
    windows: Tensor,
    folder: Path,
    progress: Progress,
    limit: float | None,
    pinned: Mapping[str, LayerPlan],
    known_only: bool,
) -> SearchResult | BudgetResult:
    recipe, model = prepared.recipe, prepared.model()
    if recipe.budget is None:
        return search_ranks(
            recipe,
            model,
            windows,
            prepared.float_type,
            folder / SEARCH,
            progress,
            pinned=pinned,
            known_only=known_only,
        )
    return solve_budget(
        recipe,
        model,
        windows,
        format_count(recipe, prepared.float_type, prepared.exports),
        folder / SEARCH,
        progress,
        target=None if limit is None else LossBound(limit),
        pinned=pinned,
        known_only=known_only,
    )


def _explicit(
    prepared: Prepared, result: SearchResult | BudgetResult, pinned: Mapping[str, LayerPlan]
) -> Recipe:
    if isinstance(result, BudgetResult):
        return with_plan(prepared.recipe, result.choice.plan)
    return with_ranks(prepared.recipe, result.ranks, in_floats=pinned)


def _meets(
    prepared: Prepared,
    plan: Plan,
    setbacks: Mapping[str, LayerPlan],
    folder: Path,
    known_only: bool = False,
) -> bool:
    """Whether a target is met although some layers kept a form which was not planned.

    A bound on the loss is, where they keep more than was planned; codes without the correction
    that was meant for them lose more.
    """
    recipe = prepared.recipe
    if recipe.budget is not None and recipe.budget.max_loss_increase is not None:
        return not any(
            plan.layer(name).form == "correction" and layer.quantization.get("weight") is not None
            for name, layer in setbacks.items()
        )
    plan = plan.with_layers(setbacks)
    if recipe.search is not None:
        return is_met(recipe.search, plan)
    assert recipe.budget is not None
    count = format_count(recipe, prepared.float_type, prepared.exports)
    times = kernel_times(
        recipe, prepared.skeleton.by_name.values(), count, folder / SEARCH, known_only=known_only
    )
    return is_within(recipe.budget, count, plan, times)


def _measured_bound(recipe: Recipe, dense: float | None) -> float | None:
    """The measured loss increase that a recipe allows; None where it sets no such bound.

    Raises:
        RankError: the dense model itself is above it.
        RecipeError: the dense model was not measured.
    """
    if recipe.budget is None or recipe.budget.perplexity is None:
        return None
    rise = recipe.budget.perplexity_rise
    if rise is not None:
        return math.log1p(rise)
    assert isinstance(recipe.budget.perplexity, float)
    if dense is None:
        raise RecipeError(
            "budget.perplexity is compared with the dense model's, which has not been measured: "
            "run `asvd-q search` on it first"
        )
    bound = math.log(recipe.budget.perplexity) - dense
    if bound <= 0:
        raise RankError(
            f"budget.perplexity {recipe.budget.perplexity:g} cannot be reached: the dense model "
            f"has {math.exp(dense):.4f} on the calibration tokens"
        )
    return bound


def _smallest(seen: Sequence[_Measured], bound: float, earlier: Sequence[str]) -> Solution:
    """Of the models within the bound the one of fewest bytes."""
    met = [one for one in seen if one.loss <= bound]
    if not met:
        raise RankError(
            "budget.perplexity cannot be reached with the forms on offer: allow wider codes in "
            "budget.bits, or a higher perplexity"
        )
    best = min(met, key=lambda one: one.choice.total_bytes)
    return replace(best.solution, earlier=tuple(earlier))


def _measure(
    prepared: Prepared, store: Store, windows: Tensor, folder: Path, progress: Progress
) -> None:
    """Measure what a store loses on the calibration tokens, and remember it."""
    dense = _dense_loss(prepared, windows, folder, progress)
    loss = _loss(prepared, windows, store.replaced, "measuring", progress)
    logger.info("loss on the calibration tokens %.5f, of the dense model %.5f", loss, dense)
    _remember(folder, losses={store.key: loss})


def _dense_loss(prepared: Prepared, windows: Tensor, folder: Path, progress: Progress) -> float:
    """What the dense model loses on the calibration tokens, measured once."""
    key = _dense_key(prepared, windows)
    found = _read(folder).dense.get(key)
    if found is None:
        found = _loss(prepared, windows, None, "measuring the dense model", progress)
        _remember(folder, dense={key: found})
    return found


def _dense_key(prepared: Prepared, windows: Tensor) -> str:
    return measured_key(prepared.model(), windows)


def _loss(
    prepared: Prepared, windows: Tensor, replaced: Replaced | None, stage: str, progress: Progress
) -> float:
    """Mean next-token loss on the calibration tokens, nats."""
    assert prepared.recipe.calibration is not None
    runner = model_runner(
        prepared.source,
        replaced,
        device=prepared.device,
        dtype=TORCH_TYPES[prepared.recipe.compute_dtype],
    )
    found = evaluate_quality(
        runner,
        TokenWindows(corpus="calibration", split="train", sha256="", tokens=windows),
        batch_size=prepared.recipe.calibration.batch_size,
        progress=lambda done, total: progress(stage, done, total),
    )
    return math.log(found.perplexity)


def _read(folder: Path) -> _Rounds:
    """What is known of earlier rounds: nothing, where the file is missing or damaged."""
    try:
        return _Rounds.model_validate_json((folder / ROUNDS).read_bytes())
    except (FileNotFoundError, ValidationError):
        return _Rounds()


def _remember(
    folder: Path,
    *,
    setbacks: Mapping[str, tuple[LayerPlan, ...]] | None = None,
    losses: Mapping[str, float] | None = None,
    dense: Mapping[str, float] | None = None,
) -> None:
    known = _read(folder)
    rounds = _Rounds(
        setbacks={**known.setbacks, **(setbacks or {})},
        losses={**known.losses, **(losses or {})},
        dense={**known.dense, **(dense or {})},
    )
    write_text(folder / ROUNDS, rounds.model_dump_json(indent=1) + "\n")
