"""What every part of a search reads, and the key of what it keeps."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asvd_q import __version__
from asvd_q.errors import RecipeError
from asvd_q.files import scratch_folder
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.refs import WeightRef
from asvd_q.progress import Progress
from asvd_q.recipe import CalibrationSection, DecomposeSection, Recipe, SearchSection

__all__ = ["SearchContext", "hidden_states", "measured_key"]

_SCRATCH = "scratch"


@dataclass(frozen=True)
class SearchContext:
    """A recipe that searches, the model and the tokens it searches with, and its folder.

    Attributes:
        recipe: with `search`, `decompose` and `calibration` sections.
        model: the dense model.
        windows: calibration tokens, int64 (samples, tokens).
        folder: what is measured is kept in it.
        known_only: run nothing and write nothing.
    """

    recipe: Recipe
    model: BlockwiseModel
    windows: Tensor
    folder: Path
    progress: Progress
    known_only: bool = False

    @property
    def search(self) -> SearchSection:
        """The recipe's section of that name."""
        assert self.recipe.search is not None
        return self.recipe.search

    @property
    def section(self) -> DecomposeSection:
        """The recipe's `decompose` section."""
        assert self.recipe.decompose is not None
        return self.recipe.decompose

    @property
    def calibration(self) -> CalibrationSection:
        """The recipe's section of that name."""
        assert self.recipe.calibration is not None
        return self.recipe.calibration

    @cached_property
    def weights(self) -> list[WeightRef]:
        """The layers to search ranks for, in model order."""
        return [
            weight
            for weight in self.model.skeleton.weights
            if weight.block is not None and self.section.selects(weight.name)
        ]

    @contextmanager
    def running(self) -> Iterator[Path | None]:
        """Surrounds whatever runs the model.

        Yields:
            A folder for hidden states, gone afterwards, if the recipe wants them on disk.

        Raises:
            RecipeError: nothing may be run.
        """
        if self.known_only:
            raise RecipeError(
                "the ranks of this recipe come from a search that has not been run: run "
                "`asvd-q search` on it first"
            )
        with hidden_states(self.calibration, self.folder) as scratch:
            yield scratch

    def remove_scratch(self) -> None:
        """Remove hidden states that a killed search has left."""
        if not self.known_only:
            shutil.rmtree(self.folder / _SCRATCH, ignore_errors=True)

    def key(self, **content: Any) -> str:
        """Hash of model, tokens, decomposition and whatever else a measured value depends on.

        The target is no part of it, nor are the ranks that are asked for.
        """
        scaling = self.section.model_dump(include={"scaling", "alpha", "damping"})
        return measured_key(self.model, self.windows, scaling=scaling, **content)


@contextmanager
def hidden_states(calibration: CalibrationSection, folder: Path) -> Iterator[Path | None]:
    """A folder for hidden states, gone afterwards, if the recipe wants them on disk."""
    if calibration.hidden_states == "memory":
        yield None
        return
    with scratch_folder(folder / _SCRATCH) as scratch:
        yield scratch


def measured_key(model: BlockwiseModel, windows: Tensor, **content: Any) -> str:
    """Hash of model, tokens, and whatever else a measured value depends on."""
    everything = {
        "asvd_q": __version__,
        "torch": torch.__version__,
        "device": model.device.type,
        "dtype": str(model.dtype),
        "weights": model.source.identity.weights_sha256,
        "tokens": hashlib.sha256(windows.numpy().tobytes()).hexdigest(),
        **content,
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
