"""Memory of what runs in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asvd_q.errors import ResourceError

__all__ = ["Resident", "resident_memory", "run_apart"]

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Resident:
    """Resident set of this process, in bytes: now, and at its largest so far."""

    now: int
    peak: int


def resident_memory() -> Resident:
    """Read from the kernel, which misses no short peak."""
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        now, peak = (int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
        return Resident(now, peak)
    import psutil

    now = psutil.Process().memory_info().rss
    try:
        import resource
    except ImportError:  # Windows
        return Resident(now, int(psutil.Process().memory_info().peak_wset))
    unit = 1 if sys.platform == "darwin" else 1024
    return Resident(now, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def run_apart(module: str, *arguments: object, given: str = "") -> Any:
    """Run a module in a process of its own.

    Args:
        given: on its standard input.

    Returns:
        What the last line that it prints says in JSON.

    Raises:
        ResourceError: with the last line of what it said.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    ended = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    lines = (ended.stdout if ended.returncode == 0 else ended.stderr).strip().splitlines() or [""]
    if ended.returncode != 0:
        subject = " ".join(map(str, arguments[:1]))
        raise ResourceError(f"{subject} cannot be measured in a process of its own: {lines[-1]}")
    return json.loads(lines[-1])
