"""Time and peak memory of each stage of a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from pydantic import BaseModel, ConfigDict

__all__ = ["StageMeter", "StageRecord"]

_INTERVAL = 0.05


class StageRecord(BaseModel):
    """One stage: seconds on the wall clock, and the process's largest resident set in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    seconds: float
    peak_memory_bytes: int


class StageMeter:
    """Collects a record for every `with meter.stage(name)`."""

    def __init__(self) -> None:
        self.records: list[StageRecord] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a block; resident memory is sampled every 50 ms."""
        process, ended = psutil.Process(), threading.Event()
        peak = process.memory_info().rss

        def watch() -> None:
            nonlocal peak
            while not ended.wait(_INTERVAL):
                peak = max(peak, process.memory_info().rss)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            ended.set()
            watcher.join()
            peak = max(peak, process.memory_info().rss)
            self.records.append(
                StageRecord(stage=name, seconds=round(seconds, 3), peak_memory_bytes=peak)
            )
