"""A model, a recipe and a store, put together as the pipeline does, without its corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asvd_q.compression import Calibration, SpectraFile, compress
from asvd_q.compression.shared import SharedStatistics
from asvd_q.files import sha256
from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.skeleton import build_skeleton
from asvd_q.plan import FloatType
from asvd_q.progress import Progress
from asvd_q.recipe import Recipe
from asvd_q.search.planning import make_plan
from asvd_q.store import Store, StoreHeader

WINDOWS = torch.randint(3, 64, (5, 12), generator=torch.Generator().manual_seed(2))
"""Calibration tokens; five windows make a last batch that is smaller than the others."""


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def compress_to(
    folder: Path,
    model: Path,
    *,
    decompose: dict[str, Any] | None = None,
    quantize: dict[str, Any] | None = None,
    correct: dict[str, Any] | None = None,
    windows: Tensor | None = WINDOWS,
    batch_size: int = 2,
    sequential: bool = False,
    scratch: Path | None = None,
    float_type: FloatType = "float32",
    seed: int = 0,
    progress: Progress = quiet,
    spectra: Path | None = None,
    shared: SharedStatistics | None = None,
) -> Store:
    """Compress, or go on with what is in `folder`.

    Args:
        windows: None compresses without statistics.
        scratch: folder for hidden states; None keeps them in memory.
        spectra: folder for the singular values; None keeps none.
    """
    source = SourceModel.open(str(model))
    recipe = Recipe.model_validate(
        {
            "model": {"path": str(model)},
            "calibration": {
                "corpus": "python-docs",
                "samples": 1,
                "window": 8,
                "sequential": sequential,
            },
            "seed": seed,
            "decompose": decompose,
            "quantize": quantize,
            "correct": correct,
        }
    )
    plan = make_plan(recipe, source, build_skeleton(source), float_type)
    header = StoreHeader(key="key", asvd_q="0", source=source.identity, plan=plan)
    store = Store.create(folder, header, source)
    calibration = None
    if windows is not None:
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        calibration = Calibration(windows, batch_size, sequential, scratch)
    compress(
        BlockwiseModel(source),
        store,
        section=recipe.decompose,
        quantization=recipe.quantize,
        correction=recipe.correct,
        seed=recipe.seed,
        calibration=calibration,
        progress=progress,
        spectra=None
        if spectra is None
        else SpectraFile(spectra, store.key, [layer.name for layer in plan]),
        shared=shared,
    )
    return Store.open(folder, source)


def hashes(folder: Path) -> dict[str, str]:
    """Hash of every file of a folder."""
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
