"""A tiny model whose layers fail, and what comes of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asvd_q.models import SourceModel
from asvd_q.opening import STORE
from asvd_q.pipeline import run, search
from asvd_q.recipe import Recipe
from asvd_q.report.run import RunRecord
from asvd_q.store import Store
from tests.compression.job import quiet

REPOSITORY = Path(__file__).parents[2]
BLOCKS = 3
NAME = "model.layers.1.mlp.down_proj"
OTHER_BYTES = 4 * (2 * 8192 * 32 + (2 * BLOCKS + 1) * 32)
"""Embedding, head and norms, in float32."""

SIZE = OTHER_BYTES + 20_000
"""Bytes; the layers take 26 kB dense at 8 bits, and 92 kB in floating point."""


def stages(record: RunRecord) -> list[str]:
    return [stage.stage for stage in record.stages]


def ranks(record: RunRecord) -> dict[str, int | None]:
    return {one.name: one.rank for one in record.layers}


def open_store(recipe: Recipe) -> Store:
    return Store.open(Path(recipe.output) / STORE, SourceModel.open(recipe.model.path))


def added_errors(make_recipe: Callable[..., Recipe], **sections: Any) -> dict[str, float]:
    """What quantization adds to each layer, as the reasons under a bound that none meets say."""
    found = search(make_recipe("search", **sections), quiet).ranks
    quantization = {**sections["quantize"], "max_error": 1e-9}
    recipe = make_recipe("measured", decompose={"ranks": found}, search=None, quantize=quantization)
    errors = {
        one.name: float(re.findall(r"error of (\S+),", one.reason or "")[0])
        for one in run(recipe, quiet).layers
    }
    assert len(errors) == 7 * BLOCKS
    return dict(sorted(errors.items(), key=lambda item: -item[1]))
