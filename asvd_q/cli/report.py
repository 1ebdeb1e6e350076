"""`report`: the page of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asvd_q.cli.app import LOOK, app
from asvd_q.cli.console import say

__all__ = ["report"]


@app.command(rich_help_panel=LOOK)
def report(
    run_folder: Annotated[
        Path, typer.Argument(help="Folder of a finished run.", show_default=False)
    ],
) -> None:
    """Write the report of a finished run again, as HTML and as Markdown, from what it left."""
    from asvd_q.report.page import REPORT_MARKDOWN, write_report

    page = write_report(run_folder)
    say(str(page))
    say(str(run_folder / REPORT_MARKDOWN))
