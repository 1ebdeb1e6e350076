"""Environments that have other packages than this one, and scripts of ours in them."""

from __future__ import annotations

import os
import subprocess
import venv
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["add_environment_options", "interpreter", "run_elsewhere"]


def add_environment_options(parser: ArgumentParser, package: str) -> None:
    """`--python` and `--make-environment`, one of which has to be given."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--python", type=Path, help=f"an interpreter that has {package}")
    where.add_argument("--make-environment", type=Path, metavar="DIR", help="create one there")


def interpreter(options: Namespace, requirements: Path) -> Path:
    """The one that the options name, or that of an environment created or completed there.

    Args:
        requirements: file of pinned packages.
    """
    if options.python is not None:
        named: Path = options.python
        return named
    venv.create(options.make_environment, with_pip=True)
    python: Path = options.make_environment / "bin" / "python"
    install = ("-m", "pip", "install", "--quiet", "--requirement", str(requirements))
    subprocess.run([python, *install], check=True)
    return python


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
