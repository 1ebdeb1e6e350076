"""Run as a program: compresses a model and kills itself at a given point.

python -m tests.compression.killed STORE MODEL WHERE BLOCK OPTIONS
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asvd_q.store.store as store_module
from tests.compression.job import compress_to


def kill() -> None:
    """As the machine would: no clean-up, nothing flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_before(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Die instead of doing something to a file of that name."""

    def wrapped(*args: Any) -> Any:
        if any(isinstance(part, Path) and part.name.startswith(name) for part in args):
            kill()
        return original(*args)

    return wrapped


def main(store: str, model: str, where: str, block: str, options: str) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if where == "after" and stage == "compressing" and done == int(block) + 1:
            kill()

    stem = f"{int(block):05d}"
    if where == "tensors":
        store_module.save_file = kill_before(store_module.save_file, f"{stem}.safetensors")
    if where == "record":
        store_module.write_text = kill_before(store_module.write_text, f"{stem}.json")
    compress_to(Path(store), Path(model), progress=progress, **json.loads(options))


if __name__ == "__main__":
    main(*sys.argv[1:])
