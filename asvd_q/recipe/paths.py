"""Paths in a recipe: relative to its file first, then to the current directory."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationInfo

__all__ = ["resolve_path"]


def resolve_path(path: str, info: ValidationInfo, *, probe: str | None = None) -> str:
    """Absolute form of a path that exists; anything else as it was written.

    Args:
        path: as the recipe has it.
        info: its context may hold `folders` to look in before the current directory, the recipe
            file's first.
        probe: the name to look for in place of `path`, where that has a placeholder.
    """
    wanted = os.path.expanduser(probe or path)
    given = info.context.get("folders", ()) if info.context else ()
    for folder in (*map(Path, given), Path.cwd()):
        if (folder / wanted).exists():
            return os.path.abspath(folder / os.path.expanduser(path))
    return path
