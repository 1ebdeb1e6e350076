"""The dense model on the texts of an evaluation: run once, its logits kept for every comparison."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from asvd_q.artefact import Runner
from asvd_q.evaluation.quality import Quality, TokenWindows, scored_quality
from asvd_q.files import make_folder
from asvd_q.models.hidden import HiddenStates
from asvd_q.progress import Progress

__all__ = ["DenseLogits"]

_FLOAT32 = 4
_SPARE = 2
"""Logits are kept where the disk has this many times the room that they take."""


class DenseLogits:
    """Logits of one model, text by text."""

    def __init__(self, make: Callable[[], Runner], vocabulary: int, folder: Path) -> None:
        """
        Args:
            make: opens the model; called when it is run for the first time.
            vocabulary: entries of one position's logits.
            folder: keeps the logits; what it holds is removed.
        """
        self._make = make
        self._vocabulary = vocabulary
        self._folder = folder
        self._runner: Runner | None = None
        self._kept: dict[str, HiddenStates] = {}
        self.clear()

    def clear(self) -> None:
        """Remove what is kept."""
        self._kept.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def quality(
        self, key: str, text: TokenWindows, batch_size: int, progress: Progress, *, keep: bool
    ) -> Quality:
        """Perplexity of the model.

        Args:
            key: as in `logits`.
            keep: the logits too.
        """
        batches = torch.split(text.tokens, batch_size)
        logits = self.logits(key, text, batch_size) if keep else self._opened().score(batches)

        def advance(done: int, total: int) -> None:
            progress(f"evaluating the dense model on {text.corpus}", done, total)

        runtime = self._opened().runtime
        return scored_quality(logits, runtime, text, batch_size=batch_size, progress=advance)

    def logits(self, key: str, text: TokenWindows, batch_size: int) -> Iterable[Tensor]:
        """Of every batch in order, each (windows, tokens, vocabulary).

        Args:
            key: of the text and of how it is cut into batches.
        """
        batches = torch.split(text.tokens, batch_size)
        kept = self._kept.get(key)
        if kept is not None:
            return (kept[position] for position in range(len(kept)))
        if not self._fits(text):
            return self._opened().score(batches)
        return self._keeping(key, batches)

    def _keeping(self, key: str, batches: tuple[Tensor, ...]) -> Iterable[Tensor]:
        """Run the model, and keep what it gives once the last batch is through."""
        folder = self._folder / key[:16]
        make_folder(folder)
        states = HiddenStates(folder)
        for logits in self._opened().score(batches):
            states.append(logits)
            yield logits
        self._kept[key] = states

    def _fits(self, text: TokenWindows) -> bool:
        make_folder(self._folder)
        needed = text.tokens.numel() * self._vocabulary * _FLOAT32
        return shutil.disk_usage(self._folder).free > _SPARE * needed

    def _opened(self) -> Runner:
        if self._runner is None:
            self._runner = self._make()
        return self._runner
