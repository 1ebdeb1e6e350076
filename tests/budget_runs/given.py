"""A tiny model under budgets, and what lies in its store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asvd_q.models import SourceModel
from asvd_q.opening import STORE
from asvd_q.recipe import Recipe
from asvd_q.report.run import RunRecord
from asvd_q.store import Store

BLOCKS = 2
NAME = "model.layers.1.mlp.down_proj"
WEIGHTS = BLOCKS * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)
OTHER_BYTES = 4 * (2 * 8192 * 32 + (2 * BLOCKS + 1) * 32)
"""Embedding, head and norms, in float32."""

CHOICES: dict[str, Any] = {"bits": [2, 4, 8], "group_sizes": [16], "ranks": 2}
Capture = pytest.CaptureFixture[str]
Write = Callable[..., Path]
Make = Callable[..., Recipe]


def open_store(recipe: Recipe) -> Store:
    return Store.open(Path(recipe.output) / STORE, SourceModel.open(recipe.model.path))


def layer_bytes(store: Store) -> int:
    """What lies in the store, matrix by matrix."""
    return sum(
        part.nbytes for layer in store.plan for part in store.layer(layer.name).weights.values()
    )


def stages(record: RunRecord) -> list[str]:
    return [stage.stage for stage in record.stages]
