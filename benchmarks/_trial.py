"""One model and its calibration tokens, on which sweeps are measured in turns."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asvd_q.models.refs import WeightRef
from asvd_q.recipe import DecomposeSection
from asvd_q.report.run import versions
from asvd_q.search.candidates import DEFAULT_RATIOS
from benchmarks._agreement import Losses
from benchmarks._naive import (
    exact_truncation,
    layer_scalings,
    load_whole,
    mean_loss,
    mean_magnitudes,
    naive_losses,
    published_ranks,
    published_truncation,
    run_forward,
)
from benchmarks._sweeps import Measured, Sweep, measure_alone
from benchmarks.common import Bench

__all__ = ["Trial", "evenly_spaced"]


def evenly_spaced(weights: Sequence[WeightRef], count: int) -> list[WeightRef]:
    """At most `count` layers: the kinds take turns, each kind's layers lie apart in the model.

    Returns:
        In the order of `weights`; as many as wanted where all kinds have as many layers.
    """
    kinds: dict[str, list[WeightRef]] = {}
    for weight in weights:
        kinds.setdefault(weight.kind, []).append(weight)
    count = min(count, len(weights))
    members = list(kinds.values())
    chosen = set()
    for turn in range(count):
        kind = members[turn % len(members)]
        chosen.add(kind[turn * len(kind) // count].name)
    return [weight for weight in weights if weight.name in chosen]


class Trial:
    """Measures sweeps over all layers of the blocks, at the paper's ratios.

    Attributes:
        weights, ranks: the candidates.
        forwards: seconds of one forward pass over all windows, one before every sweep.
    """

    def __init__(
        self, bench: Bench, windows: Tensor, section: DecomposeSection, batch_size: int
    ) -> None:
        """Args: windows: int64 (samples, tokens)."""
        self.bench = bench
        self.windows = windows
        self.section = section
        self.batch_size = batch_size
        self.weights = [weight for weight in bench.skeleton.weights if weight.block is not None]
        self.ranks = published_ranks(self.weights)
        self.forwards: list[float] = []
        self._batches = torch.split(windows, batch_size)
        self._whole = load_whole(bench.source)
        run_forward(self._whole, self._batches)  # the first pass pays for what others find ready

    @property
    def candidates(self) -> int:
        """How many layers at how many ranks."""
        return sum(map(len, self.ranks.values()))

    def sweep(self, **settings: Any) -> Measured:
        """A sweep of this package's in a process of its own, after a forward pass.

        Args:
            settings: fields of `Sweep`.
        """
        self._forward()
        job = Sweep(
            self.bench.source.path,
            self.windows.numpy(),
            self.ranks,
            self.section,
            batch_size=self.batch_size,
            **settings,
        )
        return measure_alone(job)

    def published(self) -> tuple[float, Losses]:
        """Seconds and losses of the published sweep, after a forward pass."""
        torch.manual_seed(0)
        magnitudes = mean_magnitudes(self._whole, self.weights, self._batches)
        self._forward()
        start = time.perf_counter()
        truncation = published_truncation(magnitudes)
        losses = naive_losses(self._whole, self.weights, self.ranks, truncation, self._batches)
        return time.perf_counter() - start, losses

    def published_exactly(self, layers: int) -> Losses:
        """Losses of some layers by the published sweep, the SVD exact, the scaling our own."""
        chosen = evenly_spaced(self.weights, layers)
        scalings = layer_scalings(self._whole, chosen, self._batches, self.section)
        truncation = exact_truncation(scalings)
        return naive_losses(self._whole, chosen, self.ranks, truncation, self._batches)

    def dense(self) -> float:
        """Loss of the dense model."""
        return mean_loss(self._whole, self._batches)

    def settings(self) -> dict[str, Any]:
        """All that the numbers depend on."""
        return {
            "model": self.bench.source.name,
            "weights_sha256": self.bench.source.identity.weights_sha256,
            "corpora": list(self.bench.options.calibration),
            "split": "train",
            "samples": len(self.windows),
            "window": self.windows.shape[1],
            "tokens_sha256": hashlib.sha256(self.windows.numpy().tobytes()).hexdigest(),
            "batch_size": self.batch_size,
            "ratios": list(DEFAULT_RATIOS),
            "scaling": self.section.model_dump(include={"scaling", "alpha", "damping"}),
            "threads": torch.get_num_threads(),
            "cpus": os.cpu_count(),
            "versions": versions(),
        }

    def _forward(self) -> None:
        start = time.perf_counter()
        run_forward(self._whole, self._batches)
        self.forwards.append(time.perf_counter() - start)
