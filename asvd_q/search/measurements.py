"""Allocations measured with all their layers truncated together: run once, then kept.

    <folder>/<key>/<hash of the ranks>.json     {"key": …, "ranks": {layer: rank}, "dense": …, …}

The key covers everything that a measurement depends on but the ranks, which the entry names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from asvd_q.files import make_folder, write_text
from asvd_q.search.context import SearchContext
from asvd_q.search.joint import measure_jointly
from asvd_q.search.scoring import Metric

__all__ = ["Measurement", "known_measurements", "measured"]

Ranks = Mapping[str, int]


class Measurement(BaseModel):
    """What one choice of ranks loses.

    Attributes:
        dense: mean next-token loss of the dense model; 0 where divergences are measured.
        loss: the increase above that, or the divergence; nats per token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dense: float
    loss: float


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    ranks: dict[str, int]
    measurement: Measurement


def measured(context: SearchContext, choices: Sequence[Ranks], metric: Metric) -> list[Measurement]:
    """Measurements of all choices; those that are not known are made, together.

    Args:
        choices: layer → rank; layers that are not named stay dense.

    Raises:
        RecipeError: nothing may be run, and one of them was not measured before.
    """
    cache = _Cache(context, metric)
    missing = [choice for choice in choices if cache.get(choice) is None]
    if missing:
        truncated = [choice for choice in missing if choice]
        with context.running() as folder:
            found = measure_jointly(
                context.model,
                context.windows,
                truncated,
                context.section,
                metric=metric,
                batch_size=context.calibration.batch_size,
                folder=folder,
                progress=context.progress,
            )
        cache.add({}, Measurement(dense=found.dense, loss=0.0))
        for choice, loss in zip(truncated, found.increases, strict=True):
            cache.add(choice, Measurement(dense=found.dense, loss=loss))
    results = [cache.get(choice) for choice in choices]
    return [result for result in results if result is not None]


def known_measurements(
    context: SearchContext, choices: Sequence[Ranks], metric: Metric
) -> list[Measurement | None]:
    """Measurements made before, None for each that was not; runs nothing."""
    cache = _Cache(context, metric)
    return [cache.get(choice) for choice in choices]


class _Cache:
    def __init__(self, context: SearchContext, metric: Metric) -> None:
        self._key = context.key(joint=metric)
        self._folder = context.folder / self._key[:16]

    def get(self, ranks: Ranks) -> Measurement | None:
        """None where the entry is missing, damaged or of something else."""
        try:
            entry = _Entry.model_validate_json(self._path(ranks).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        fitting = entry.key == self._key and entry.ranks == dict(ranks)
        return entry.measurement if fitting else None

    def add(self, ranks: Ranks, measurement: Measurement) -> None:
        make_folder(self._folder)
        entry = _Entry(key=self._key, ranks=dict(ranks), measurement=measurement)
        write_text(self._path(ranks), entry.model_dump_json() + "\n")

    def _path(self, ranks: Ranks) -> Path:
        content = json.dumps(dict(ranks), sort_keys=True).encode()
        return self._folder / f"{hashlib.sha256(content).hexdigest()[:32]}.json"
