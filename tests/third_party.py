"""Packages that bring an exporter, and commands in a process that sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["EXAMPLE", "asvd_q", "install", "register"]

EXAMPLE = Path(__file__).parents[1] / "examples" / "npz-exporter"


def install(package: Path, target: Path) -> None:
    """Build a package and install it into a folder, without a network."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
            *("--no-build-isolation", "--no-cache-dir", "--target", str(target), str(package)),
        ],
        check=True,
        capture_output=True,
        text=True,
    )


def register(folder: Path, package: str, name: str, value: str, code: str = "") -> None:
    """What installing a package with one module and one entry point leaves in a folder."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[asvd_q.exporters]\n{name} = {value}\n")
    if code:
        (folder / f"{value.partition(':')[0]}.py").write_text(code)


def asvd_q(*commands: Sequence[str | Path], packages: Path) -> list[str]:
    """Run commands one after another in one new process, with a folder of packages on its path.

    Returns:
        What each has printed. A command that fails fails the test.
    """
    path = os.pathsep.join([str(packages), *filter(None, sys.path)])
    ended = subprocess.run(
        [sys.executable, "-c", _COMMANDS],
        env={**os.environ, "PYTHONPATH": path},
        input=json.dumps([[str(word) for word in command] for command in commands]),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split("\0")[:-1]


_COMMANDS = """
import json, sys
from asvd_q.cli import main
for words in json.load(sys.stdin):
    sys.argv = ["asvd-q", *words]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    print(end="\\0", flush=True)
"""
