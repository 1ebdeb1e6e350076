"""`latency`: how long models take, measured in turns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asvd_q.cli.app import MEASURE, app
from asvd_q.cli.console import console, say
from asvd_q.cli.options import (
    BatchesOption,
    ModelOption,
    PromptsOption,
    RoundsOption,
    ThreadsOption,
    TokensOption,
    measured_load,
)
from asvd_q.errors import RecipeError
from asvd_q.naming import named_path

__all__ = ["latency"]


@app.command(rich_help_panel=MEASURE)
def latency(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]PATH...",
            help="Run folders, artefacts and model folders; the first is what others are "
            "compared with.",
            show_default=False,
        ),
    ],
    batches: BatchesOption = "1",
    prompts: PromptsOption = "32,512",
    tokens: TokensOption = 32,
    rounds: RoundsOption = 5,
    threads: ThreadsOption = None,
    model: ModelOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Where the numbers go.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Where a plot goes: .svg, .png.")
    ] = None,
) -> None:
    """Time from prompt to tokens of several models, each in its runtime, in turns in one run."""
    named = _named(paths)
    load = measured_load(batches, prompts, tokens, rounds)
    from asvd_q.opening import open_anything
    from asvd_q.process import limited_threads
    from asvd_q.report.latency import latency_table, plot_latency, write_latency
    from asvd_q.report.plots import require_plot
    from asvd_q.report.progress import showing_progress
    from asvd_q.report.tables import print_table
    from asvd_q.speed import models_speed

    if plot is not None:
        require_plot(plot)
    with limited_threads(threads), showing_progress(console(stderr=True)) as progress:
        opened = {name: open_anything(path, model) for name, path in named.items()}
        found = models_speed(opened, load, progress)
    print_table(console(), latency_table(found))
    if json_file is not None:
        write_latency(found, named, threads, json_file)
        say(f"numbers: {json_file}")
    if plot is not None:
        plot_latency(found, plot)
        say(f"plot: {plot}")


def _named(texts: list[str]) -> dict[str, Path]:
    """Paths by the names they were given, or by as much of their ends as tells them apart."""
    given = [named_path(text, "latency") for text in texts]
    ends = [path.resolve().parts for name, path in given if not name]
    length = 1
    while len({end[-length:] for end in ends}) < len(ends) and length < max(map(len, ends)):
        length += 1
    found: dict[str, Path] = {}
    for name, path in given:
        shown = name or "/".join(path.resolve().parts[-length:])
        if shown in found:
            raise RecipeError(f"{shown} names two models: give each a NAME=PATH of its own")
        found[shown] = path
    return found
