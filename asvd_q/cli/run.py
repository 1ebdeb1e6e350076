"""`run` and `export`: from a recipe to artefacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asvd_q.cli.app import COMPRESS, app
from asvd_q.cli.console import console, say
from asvd_q.cli.options import (
    BitsOption,
    JsonOption,
    ModelOption,
    RecipeArgument,
    SetOption,
    SizeOption,
    load,
    with_budget,
)

__all__ = ["export_command", "run"]


@app.command(rich_help_panel=COMPRESS)
def run(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    size: SizeOption = None,
    bits_per_weight: BitsOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Throw away what an earlier run left.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Carry out a recipe; run again, it goes on where it stopped."""
    loaded = load(recipe, with_budget(overrides, size, bits_per_weight))
    from asvd_q import pipeline
    from asvd_q.report import tables
    from asvd_q.report.page import REPORT_HTML
    from asvd_q.report.progress import showing_progress
    from asvd_q.report.tables import artefact_table, print_table, quality_table
    from asvd_q.report.tasks import task_table

    terminal = console()
    with showing_progress(console(stderr=True)) as progress:
        record = pipeline.run(loaded, progress, fresh=fresh)
    if as_json:
        print(record.model_dump_json(indent=1))  # noqa: T201 - the command's output
        return
    for warning in record.warnings:
        terminal.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    if record.quality:
        print_table(terminal, quality_table(record))
    if record.tasks:
        print_table(terminal, task_table(record.tasks, record.dense_tasks))
    if record.artefacts:
        print_table(terminal, artefact_table(record))
    for line in (
        f"layers: kept {record.parameters.ratio:.4f} of their parameters, "
        f"{tables.size(record.layer_bytes.before)} to {tables.size(record.layer_bytes.after)}",
        f"whole model: {tables.size(record.total_bytes.before)} to "
        f"{tables.size(record.total_bytes.after)} "
        f"in the source's float type, codes at their own width",
        f"run folder: {loaded.output}",
        f"report: {Path(loaded.output) / REPORT_HTML}",
    ):
        terminal.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command(name="export", rich_help_panel=COMPRESS)
def export_command(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    to: Annotated[str, typer.Option("--to", help="Format: onnx, gptq, transformers, …")],
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="Option of the format."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Folder of the artefact; the format's name.")
    ] = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a finished run in another format, without repeating its work."""
    from asvd_q.pipeline import export_run
    from asvd_q.recipe.build import export_section
    from asvd_q.report.tables import size

    artefact = export_run(run_folder, export_section(to, name=name, options=options or ()), model)
    if as_json:
        print(artefact.model_dump_json(indent=1))  # noqa: T201
        return
    proof = artefact.proof
    say(
        f"{run_folder / artefact.folder}: {size(artefact.bytes)}, predicted "
        f"{size(artefact.predicted.folder)}, {proof.status}"
    )
    if proof.relative_error is not None:
        say(f"{proof.runtime}: relative logit error {proof.relative_error:.2e}")
    elif proof.detail:
        say(proof.detail)
