"""The machine that numbers were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

__all__ = ["Machine", "this_machine"]

_CPUINFO = Path("/proc/cpuinfo")


class Machine(BaseModel):
    """What speed depends on, but for what else the machine did.

    Attributes:
        cpu: as it calls itself.
        cores: that this process may use.
        memory_bytes: of the whole machine.
        threads: that OMP_NUM_THREADS allowed every process; None where it was not set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    threads: int | None = None

    def __str__(self) -> str:
        limit = "" if self.threads is None else f", OMP_NUM_THREADS={self.threads}"
        memory = f"{self.memory_bytes / 2**30:.0f} GiB"
        return f"{self.cpu}, {self.cores} cores{limit}, {memory}, {self.system}"


def this_machine() -> Machine:
    """The machine that this process runs on."""
    affinity = getattr(os, "sched_getaffinity", None)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Machine(
        cpu=_cpu(),
        cores=(os.cpu_count() or 1) if affinity is None else len(affinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.machine()}",
        threads=int(threads) if threads.isdecimal() else None,
    )


def _cpu() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
