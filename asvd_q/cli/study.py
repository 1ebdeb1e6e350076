"""`study`: one recipe at many settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asvd_q.cli.app import MEASURE, app
from asvd_q.cli.console import console, say
from asvd_q.cli.options import JsonOption, SetOption

__all__ = ["study"]

OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="KEY=VALUE", help="Keep the points with this value alone."),
]


@app.command(rich_help_panel=MEASURE)
def study(
    file: Annotated[Path, typer.Argument(help="Study file (YAML).", show_default=False)],
    overrides: SetOption = None,
    only: OnlyOption = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Print the points and compute nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compress and evaluate a recipe at many settings; called again, it goes on where it stopped.

    --set puts a value into all points; of a key that the study varies, it replaces the values.
    """
    from asvd_q.study.load import load_study

    loaded = load_study(file, overrides or (), only or ())
    if listed:
        for point in loaded.points:
            say(point.title)
        return
    from asvd_q.progress import silent
    from asvd_q.report.progress import showing_progress
    from asvd_q.report.tables import print_table
    from asvd_q.study.run import run_study
    from asvd_q.study.tables import dense_table, study_table
    from asvd_q.study.write import write_study

    errors = console(stderr=True)

    def tell(line: str) -> None:
        errors.print(line, markup=False, highlight=False, soft_wrap=True)

    with showing_progress(errors) as progress:
        record = run_study(
            loaded.points,
            loaded.output,
            name=loaded.title,
            distances=loaded.section.distances,
            # Lines of single steps would bury those of the points.
            progress=progress if errors.is_terminal else silent,
            tell=tell,
        )
    write_study(record, loaded.output, loaded.section.plot)
    if as_json:
        print(record.model_dump_json(indent=1))  # noqa: T201
        return
    print_table(console(), study_table(record))
    print_table(console(), dense_table(record))
    for failed in (point for point in record.points if point.failure is not None):
        say(f"failed: {failed.title}: {failed.failure}")
    say(f"numbers, table and plot: {loaded.output}")
