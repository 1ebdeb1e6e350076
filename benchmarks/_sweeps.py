"""A sensitivity sweep as a job for a process of its own: its time, its memory, its losses."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import psutil
import torch

from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.recipe import DecomposeSection
from asvd_q.search.exact import exact_losses
from asvd_q.search.fast import fast_losses
from asvd_q.search.scoring import Metric
from asvd_q.statistics.labels import Labels

__all__ = ["Measured", "Sweep", "measure", "measure_alone"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Sweep:
    """What is to be swept, and how.

    Attributes:
        model: folder.
        windows: int64 (samples, tokens).
        ranks: layer inside a block → the ranks to try.
        metric: of an exact sweep.
        labels: of a fast one.
    """

    model: Path
    windows: npt.NDArray[np.int64]
    ranks: Mapping[str, Sequence[int]]
    section: DecomposeSection
    sensitivity: Literal["exact", "fast"]
    metric: Metric = "perplexity"
    labels: Labels = "sampled"
    batch_size: int = 4

    @property
    def candidates(self) -> int:
        """How many layers at how many ranks."""
        return sum(map(len, self.ranks.values()))


@dataclass(frozen=True)
class Measured:
    """What came of a sweep.

    Attributes:
        seconds: on the wall clock; imports are left out, the reading of the weights is not.
        peak_memory_bytes: largest resident set of the process from its start to its end.
        added_memory_bytes: largest resident set during the sweep, less that just before it.
        losses: layer → rank → loss increase, nats per token.
    """

    seconds: float
    peak_memory_bytes: int
    added_memory_bytes: int
    losses: dict[str, dict[int, float]]


def measure(sweep: Sweep) -> Measured:
    """Carry a sweep out in this process.

    A sweep of one candidate on a few tokens goes before it, so that neither time nor memory of
    what torch sets up on first use is counted as the sweep's.
    """
    model = BlockwiseModel(SourceModel.open(str(sweep.model)))
    name, ranks = next(iter(sweep.ranks.items()))
    few = replace(sweep, windows=sweep.windows[:1, :8], ranks={name: ranks[:1]})
    _run(model, few)
    before = psutil.Process().memory_info().rss
    earlier = _restart_peak()
    start = time.perf_counter()
    losses = _run(model, sweep)
    seconds = time.perf_counter() - start
    peak = _peak_memory()
    return Measured(seconds, max(peak, earlier), max(peak - before, 0), losses)


def measure_alone(sweep: Sweep) -> Measured:
    """Carry a sweep out in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, sweep).result()


def _run(model: BlockwiseModel, sweep: Sweep) -> dict[str, dict[int, float]]:
    windows, section, size = torch.from_numpy(sweep.windows), sweep.section, sweep.batch_size
    if sweep.sensitivity == "exact":
        return exact_losses(
            model, windows, sweep.ranks, section, metric=sweep.metric, batch_size=size
        )
    weights = [weight for weight in model.skeleton.weights if weight.name in sweep.ranks]
    curves = fast_losses(model, windows, weights, section, labels=sweep.labels, batch_size=size)
    return {
        name: {rank: float(curve[rank]) for rank in sweep.ranks[name]}
        for name, curve in curves.items()
    }


def _peak_memory() -> int:
    """Largest resident set of this process, in bytes, since the last `_restart_peak`."""
    if _STATUS.exists():
        # On Linux getrusage takes the parent's peak over to the child.
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _restart_peak() -> int:
    """Forget the peak so far, where the system can, and return it.

    Source: proc_pid_clear_refs(5): writing 5 resets VmHWM to the resident set of now.
    """
    peak = _peak_memory()
    if _CLEAR.exists():
        _CLEAR.write_text("5")
    return peak
