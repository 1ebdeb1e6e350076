"""What the commands say, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "say"]


def console(*, stderr: bool = False) -> Console:
    """A console of Rich, which is imported when it is needed."""
    from rich.console import Console

    return Console(stderr=stderr)


def say(text: str) -> None:
    """One line on the standard output."""
    typer.echo(text)
