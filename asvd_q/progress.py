"""How long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

Progress = Callable[[str, int, int], None]
"""Called with the stage, what of it is done, and what there is to do."""


def silent(stage: str, done: int, total: int) -> None:
    """Say nothing."""
