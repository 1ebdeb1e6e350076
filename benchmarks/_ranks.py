"""Ranks for a setting: from the package's search, or from an allocation of the literature."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.recipe import DecomposeSection
from asvd_q.search.baselines import effective_rank_ranks, truncation_loss_ranks
from asvd_q.search.spectra import singular_values
from benchmarks._setting import Setting
from benchmarks.common import BATCH, Bench

__all__ = ["BASELINES", "SENSITIVITIES", "RankFinder"]

SENSITIVITIES: dict[str, dict[str, Any]] = {
    "fast": {"sensitivity": "fast", "labels": "sampled"},
    "exact-kl": {"sensitivity": "exact", "metric": "kl"},
    "exact-perplexity": {"sensitivity": "exact", "metric": "perplexity"},
    "hybrid": {"sensitivity": "hybrid", "labels": "sampled"},
    "stable_rank": {"sensitivity": "stable_rank"},
}
"""Name → fields of the `search` section."""

_RANK_MULTIPLE = 1

Spectra = Mapping[str, NDArray[np.float64]]
Shapes = Mapping[str, tuple[int, int]]


class _Baseline(Protocol):
    def __call__(
        self, spectra: Spectra, shapes: Shapes, budget: int, tokens: int
    ) -> Mapping[str, int | None]: ...


def _effective_rank(
    spectra: Spectra,
    shapes: Shapes,
    budget: int,
    tokens: int,
    *,
    rule: Literal["proportional", "lagrange"],
) -> Mapping[str, int | None]:
    return effective_rank_ranks(spectra, shapes, budget, _RANK_MULTIPLE, rule)


def _truncation_loss(
    spectra: Spectra, shapes: Shapes, budget: int, tokens: int
) -> Mapping[str, int | None]:
    return truncation_loss_ranks(spectra, shapes, budget, _RANK_MULTIPLE, tokens)


BASELINES: dict[str, _Baseline] = {
    "effective_rank": partial(_effective_rank, rule="proportional"),
    "effective_rank_lagrange": partial(_effective_rank, rule="lagrange"),
    "truncation_loss": _truncation_loss,
}
"""Name → allocation of asvd_q/search/baselines.py."""


class RankFinder:
    """Finds ranks; whatever is expensive is done once for all targets."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        """Args: folder: keeps the sensitivities."""
        self._bench = bench
        self._folder = folder
        self._weights = [weight for weight in bench.skeleton.weights if weight.block is not None]
        self._spectra: dict[tuple[str | None, tuple[str, ...]], Spectra] = {}
        self._ranks: dict[Setting, dict[str, int]] = {}

    def ranks(self, setting: Setting) -> dict[str, int]:
        """Rank of every layer that is to be factorised.

        Raises:
            RankError: the method cannot reach the target.
        """
        key = setting.ranks_alone
        if key not in self._ranks:
            baseline = setting.method in BASELINES
            self._ranks[key] = self._allocated(setting) if baseline else self._searched(setting)
        return self._ranks[key]

    def _searched(self, setting: Setting) -> dict[str, int]:
        assert setting.sensitivity is not None
        sections = {
            "decompose": {"scaling": setting.scaling, "rank_multiple": _RANK_MULTIPLE},
            "search": SENSITIVITIES[setting.sensitivity]
            | {"method": setting.method, "kept_ratio": setting.target},
        }
        return self._bench.searched_ranks(sections, self._folder, setting.calibration)

    def _allocated(self, setting: Setting) -> dict[str, int]:
        shapes = {weight.name: weight.shape for weight in self._weights}
        budget = int(setting.target * sum(rows * columns for rows, columns in shapes.values()))
        tokens = self._bench.calibration(setting.calibration).numel()
        ranks = BASELINES[setting.method](self._singular_values(setting), shapes, budget, tokens)
        return {name: rank for name, rank in ranks.items() if rank is not None}

    def _singular_values(self, setting: Setting) -> Spectra:
        """Of W S, layer by layer."""
        key = (setting.scaling, setting.calibration)
        if key not in self._spectra:
            model = BlockwiseModel(self._bench.source, skeleton=self._bench.skeleton)
            self._spectra[key] = singular_values(
                model,
                self._bench.calibration(setting.calibration),
                self._weights,
                DecomposeSection.model_validate({"scaling": setting.scaling}),
                batch_size=BATCH,
            )
        return self._spectra[key]
