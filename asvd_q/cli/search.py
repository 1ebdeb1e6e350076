"""`search` and `frontier`: forms of layers, and nothing compressed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from asvd_q.cli.app import COMPRESS, app
from asvd_q.cli.console import console, say
from asvd_q.cli.options import (
    BitsOption,
    JsonOption,
    RecipeArgument,
    SetOption,
    SizeOption,
    load,
    numbers,
    with_budget,
)

__all__ = ["frontier", "search"]


@app.command(rich_help_panel=COMPRESS)
def search(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    size: SizeOption = None,
    bits_per_weight: BitsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the rank, or the form, of every layer for the recipe's target; nothing is compressed.

    What is found is kept in the run folder, and `asvd-q run` takes it from there.
    """
    loaded = load(recipe, with_budget(overrides, size, bits_per_weight))
    from asvd_q import pipeline
    from asvd_q.budget.solving import BudgetResult
    from asvd_q.report.budget import budget_summary, budget_table
    from asvd_q.report.progress import showing_progress
    from asvd_q.report.search import SEARCH, search_findings, search_summary, search_table
    from asvd_q.report.tables import print_table

    with showing_progress(console(stderr=True)) as progress:
        result = pipeline.search(loaded, progress)
    folder = Path(loaded.output) / SEARCH
    if isinstance(result, BudgetResult):
        if as_json:
            print((folder / "budget.json").read_text(), end="")  # noqa: T201
            return
        print_table(console(), budget_table(result))
        for line in budget_summary(result):
            say(line)
        say(f"the plan for a recipe, the table and the front: {folder}")
        return
    if as_json:
        print((folder / "search.json").read_text(), end="")  # noqa: T201
        return
    print_table(console(), search_table(result))
    for line in (*search_summary(result), *search_findings(result)):
        say(line)
    say(f"ranks for a recipe, the table and plots: {folder}")


@app.command(rich_help_panel=COMPRESS)
def frontier(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    budgets: Annotated[
        str,
        typer.Option("--bits-per-weight", help="Budgets with commas; a row of them if left out."),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """The best predicted model at every budget, beside plain RTN, NF4 and GPTQ.

    Nothing is compressed; `asvd-q run RECIPE --bits-per-weight N` makes any of them.
    """
    loaded = load(recipe, overrides)
    from asvd_q import pipeline
    from asvd_q.report.budget import front_content, front_table
    from asvd_q.report.progress import showing_progress
    from asvd_q.report.search import SEARCH
    from asvd_q.report.tables import print_table

    with showing_progress(console(stderr=True)) as progress:
        choices, uniform = pipeline.frontier(loaded, progress, numbers(budgets))
    if as_json:
        print(json.dumps(front_content(choices, uniform), indent=1))  # noqa: T201
        return
    print_table(console(), front_table(choices, uniform))
    say(f"numbers and plot: {Path(loaded.output) / SEARCH}")
