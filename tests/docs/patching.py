"""Unified diffs that pages show, applied without a program for it."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["apply_diff"]

_FILE = re.compile(r"^\+\+\+ b/(\S+)$")


def apply_diff(body: str, folder: Path) -> None:
    """Change the files of a folder as a diff says.

    Where a hunk belongs its lines say, whatever numbers it has: they are in the file exactly once.

    Raises:
        ValueError: they are not.
    """
    file, old, new = Path(), "", ""

    def change() -> None:
        if old or new:
            text = file.read_text(encoding="utf-8")
            if not old or text.count(old) != 1:
                raise ValueError(f"{file.name} has {text.count(old)} times\n{old}")
            file.write_text(text.replace(old, new), encoding="utf-8")

    for line in [*body.splitlines(), "@@"]:
        begun = _FILE.match(line)
        if begun or line.startswith(("@@", "--- ")):
            change()
            old = new = ""
            file = folder / begun[1] if begun else file
            continue
        if not line.startswith("+"):
            old += line[1:] + "\n"
        if not line.startswith("-"):
            new += line[1:] + "\n"
