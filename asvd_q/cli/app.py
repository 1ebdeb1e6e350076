"""The Typer application; commands add themselves to it, one file for each that belongs together."""

from __future__ import annotations

from typing import Annotated

import typer

from asvd_q.cli.console import say

__all__ = ["COMPRESS", "LOOK", "MEASURE", "app"]

COMPRESS, LOOK, MEASURE = "Compress", "Look at what there is", "Measure and run"
"""Groups of commands in the help."""

app = typer.Typer(
    name="asvd-q",
    help="Low-rank decomposition and quantization of language models, exported and proven.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from asvd_q import __version__

        say(f"asvd-q {__version__}")
        raise typer.Exit
