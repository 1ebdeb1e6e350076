"""Runs a script of ours in an environment that has other packages than this one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

__all__ = ["run_elsewhere"]


def run_elsewhere(
    command: Sequence[object],
    name: str,
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> None:
    """Run a command whose Python must not find what this one's path leads to.

    Args:
        command: the other Python, its script, and arguments.
        name: what failed, in the error.
        environment: variables beside those of this process.
        timeout: seconds.

    Raises:
        RuntimeError: with the last line of what it said.
    """
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        env=own | dict(environment or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"{name} failed: {reason[-1]}")
