"""Paths that a command line may give names to."""

from __future__ import annotations

from pathlib import Path

from asvd_q.errors import RecipeError

__all__ = ["named_path"]


def named_path(argument: str, command: str) -> tuple[str, Path]:
    """Name, empty where none is given, and path of NAME=PATH; what exists is a path as a whole.

    Args:
        command: for the message.

    Raises:
        RecipeError: a name without a path, or a path behind no name.
    """
    name, equals, path = argument.partition("=")
    if not equals or "/" in name or Path(argument).exists():
        return "", Path(argument)
    if not name or not path:
        raise RecipeError(f"{command}: {argument!r} is not NAME=PATH")
    return name, Path(path)
