"""`compare`: runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from asvd_q.cli.app import LOOK, app
from asvd_q.cli.console import console, say
from asvd_q.cli.options import JsonOption
from asvd_q.errors import RecipeError

__all__ = ["compare"]


@app.command(rich_help_panel=LOOK)
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(help="Run folders, two or more; NAME=PATH gives one a name."),
    ],
    as_json: JsonOption = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown instead of tables.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Perplexity by bytes: an .svg or .png file."),
    ] = None,
) -> None:
    """What runs differ in, what they take and what they lost, side by side. Measures nothing."""
    if as_json and markdown:
        raise RecipeError("--json and --markdown are two forms of one output: give one of them")
    from asvd_q.report import compare as comparing
    from asvd_q.report.compare_plot import plot_comparison
    from asvd_q.report.compare_tables import (
        comparison_content,
        comparison_markdown,
        comparison_tables,
    )
    from asvd_q.report.plots import require_plot
    from asvd_q.report.tables import print_table

    if plot is not None:
        require_plot(plot)
    comparison = comparing.compare(comparing.read_runs(runs))
    if plot is not None:
        plot_comparison(comparison, plot)
    if as_json:
        print(json.dumps(comparison_content(comparison), indent=1))  # noqa: T201
        return
    if markdown:
        print(comparison_markdown(comparison), end="")  # noqa: T201
        return
    for table in comparison_tables(comparison):
        print_table(console(), table)
    for note in comparison.notes:
        say(f"* {note}")
    if plot is not None:
        say(f"plot: {plot}")
