"""Search, compress, look; and solve the target again around what could not be compressed.

A layer whose decomposition or quantization fails takes more than the search counted on. Where
that breaks the budget, the layer is pinned to what it has become, and the rest has to make up
for it. Every round pins a layer, or pins one to a larger form, so there is a last one.

    <run>/rounds.json     {"setbacks": {key of a store: [layer, …]}}

What came of a round is kept under the key of its store, so that a run which goes on, or is
repeated, comes to the last round without compressing anything for the others again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from asvd_q.compressing import make_store, store_key
from asvd_q.compression import Progress, check_weights
from asvd_q.files import write_text
from asvd_q.plan import LayerPlan
from asvd_q.preparation import Prepared, require_exports
from asvd_q.report.resources import StageMeter
from asvd_q.report.search import SEARCH, write_search
from asvd_q.search.ranks import SearchResult, search_ranks, with_ranks
from asvd_q.search.targets import is_met
from asvd_q.store import Store

__all__ = ["ROUNDS", "Solution", "search_and_compress", "solve"]

ROUNDS = "rounds.json"

logger = logging.getLogger("asvd_q")


class _Rounds(BaseModel):
    """Per store key, the layers that kept a form which was not planned, as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    setbacks: dict[str, tuple[LayerPlan, ...]] = {}


@dataclass(frozen=True)
class Solution:
    """What a search has come to.

    Attributes:
        prepared: with the ranks that were found, and the layers that they were solved around.
        earlier: keys of the stores of earlier rounds, none of which met the target.
    """

    prepared: Prepared
    result: SearchResult
    earlier: tuple[str, ...] = ()


def solve(
    prepared: Prepared,
    windows: Tensor,
    folder: Path,
    progress: Progress,
    *,
    known_only: bool = False,
) -> Solution:
    """Find the ranks for a recipe's target, given all that earlier rounds in the folder found out.

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
    search = prepared.recipe.search
    assert search is not None
    model, known = prepared.model(), _read(folder)
    if not known_only:
        check_weights(model, progress)
    pinned: dict[str, LayerPlan] = {}
    earlier: tuple[str, ...] = ()
    while True:
        result = search_ranks(
            prepared.recipe,
            model,
            windows,
            prepared.float_type,
            folder / SEARCH,
            progress,
            pinned=pinned,
            known_only=known_only,
        )
        recipe = with_ranks(prepared.recipe, result.ranks, in_floats=pinned)
        solved = replace(prepared, recipe=recipe, pinned=dict(pinned))
        key = store_key(solved, windows)
        setbacks = {layer.name: layer for layer in known.setbacks.get(key, ())}
        if not setbacks or is_met(search, solved.plan.with_layers(setbacks)):
            return Solution(solved, result, earlier)
        pinned |= setbacks
        earlier = (*earlier, key)


def search_and_compress(
    prepared: Prepared, windows: Tensor, folder: Path, meter: StageMeter, progress: Progress
) -> tuple[Prepared, Store]:
    """Carry out a recipe that searches, until what is stored meets its target.

    Args: as of `solve`.

    Returns:
        What was carried out in the end, and the finished store.

    Raises:
        RankError, StoreError, NumericsError: as `solve` and `make_store`.
        ExportError: an exporter cannot hold what is to be compressed.
    """
    search = prepared.recipe.search
    assert search is not None
    while True:
        with meter.stage("search"):
            found = solve(prepared, windows, folder, progress)
            write_search(found.result, folder / SEARCH)
            require_exports(found.prepared)
        with meter.stage("compress"):
            store = make_store(found.prepared, folder, windows, progress, replacing=found.earlier)
        setbacks = store.setbacks
        if not setbacks or is_met(search, store.plan.with_layers(setbacks)):
            return found.prepared, store
        names = ", ".join(setbacks)
        logger.info("not compressed as planned, so the target is solved again around: %s", names)
        _remember(folder, store.key, setbacks)


def _read(folder: Path) -> _Rounds:
    """What is known of earlier rounds: nothing, where the file is missing or damaged."""
    try:
        return _Rounds.model_validate_json((folder / ROUNDS).read_bytes())
    except (FileNotFoundError, ValidationError):
        return _Rounds()


def _remember(folder: Path, key: str, setbacks: Mapping[str, LayerPlan]) -> None:
    known = _read(folder).setbacks
    rounds = _Rounds(setbacks={**known, key: tuple(setbacks.values())})
    write_text(folder / ROUNDS, rounds.model_dump_json(indent=1) + "\n")
