"""Run as a program: carries out a recipe, and kills itself when one round's store makes room.

python -m tests.killed_run RECIPE
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from asvd_q.pipeline import run
from asvd_q.progress import silent
from asvd_q.recipe import load_recipe


def main(recipe: Path) -> None:
    original = shutil.rmtree

    def remove(folder: Path, *args: Any, **options: Any) -> None:
        """Of a store's blocks all but the last go; then, as the machine would do it, all ends."""
        if folder.name == "blocks":
            for path in sorted(folder.iterdir())[:-2]:
                path.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        original(folder, *args, **options)

    shutil.rmtree = remove  # type: ignore[assignment]
    run(load_recipe(recipe), silent)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
