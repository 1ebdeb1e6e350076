"""From a recipe whose ranks are known to a finished store in its run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from asvd_q import __version__
from asvd_q.compression import Calibration, SpectraFile, check_weights, compress
from asvd_q.compression.shared import SharedStatistics
from asvd_q.files import scratch_folder, write_text
from asvd_q.opening import STORE
from asvd_q.preparation import Prepared
from asvd_q.progress import Progress
from asvd_q.store import Store, StoreHeader

__all__ = ["RECIPE_FILE", "SCRATCH", "make_store", "store_key"]

RECIPE_FILE = "recipe.yaml"
SCRATCH = "hidden_states"


def make_store(
    prepared: Prepared,
    folder: Path,
    windows: Tensor | None,
    progress: Progress,
    *,
    replacing: Collection[str] = (),
    shared: SharedStatistics | None = None,
) -> Store:
    """Carry out a plan, or go on with it where an earlier run stopped.

    Args:
        folder: the run's.
        windows: calibration tokens, int64 (samples, tokens); None when nothing needs statistics.
        replacing: keys of stores that this one takes the place of.
        shared: as in `compress`.

    Raises:
        StoreError: the folder holds a store of another key.
        NumericsError: NaN or infinity in the weights or an activation.
    """
    recipe, source, model = prepared.recipe, prepared.source, prepared.model()
    header = StoreHeader(
        key=store_key(prepared, windows),
        asvd_q=__version__,
        source=source.identity,
        plan=prepared.plan,
    )
    if not (folder / STORE).is_dir():
        check_weights(model, progress)
    store = Store.create(folder / STORE, header, source, replacing=replacing)
    write_text(folder / RECIPE_FILE, recipe.resolved_yaml())
    with _scratch(prepared, folder) as scratch:
        calibration = None
        if windows is not None and recipe.calibration is not None:
            section = recipe.calibration
            calibration = Calibration(windows, section.batch_size, section.sequential, scratch)
        compress(
            model,
            store,
            section=recipe.decompose,
            quantization=recipe.quantize,
            correction=recipe.correct,
            seed=recipe.seed,
            calibration=calibration,
            progress=progress,
            spectra=SpectraFile(folder, store.key, [layer.name for layer in store.plan]),
            shared=shared,
        )
    return Store.open(folder / STORE, source)


def store_key(prepared: Prepared, windows: Tensor | None) -> str:
    """Hash of everything that the stored bytes depend on."""
    tokens = None if windows is None else hashlib.sha256(windows.numpy().tobytes()).hexdigest()
    content = {
        "asvd_q": __version__,
        "torch": torch.__version__,
        "device": prepared.device,
        "weights": prepared.source.identity.weights_sha256,
        "plan": prepared.plan.model_dump(mode="json"),
        "recipe": prepared.recipe.compression_fields(),
        "tokens": tokens,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def _scratch(prepared: Prepared, folder: Path) -> Iterator[Path | None]:
    """A folder for hidden states while the loop runs, if the recipe wants them on disk."""
    section = prepared.recipe.calibration
    if section is None or section.hidden_states == "memory":
        yield None
        return
    with scratch_folder(folder / SCRATCH) as scratch:
        yield scratch
