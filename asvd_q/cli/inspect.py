"""`inspect` and `schema`: what lies on the disk, and what a recipe may say."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from asvd_q.cli.app import LOOK, app
from asvd_q.cli.console import console
from asvd_q.cli.options import (
    JsonOption,
    PathArgument,
)

__all__ = ["inspect", "schema"]


@app.command(rich_help_panel=LOOK)
def inspect(path: PathArgument, as_json: JsonOption = False) -> None:
    """The per-layer table of a run, a store or an artefact."""
    from asvd_q.opening import read_any_metadata
    from asvd_q.report.tables import layer_table, print_table

    metadata = read_any_metadata(path)
    if as_json:
        print(metadata.model_dump_json(indent=1))  # noqa: T201
        return
    title = f"{metadata.source.name} as {metadata.format}, made by asvd-q {metadata.asvd_q}"
    print_table(console(), layer_table(metadata.layers, title))


@app.command(rich_help_panel=LOOK)
def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The reference as a page: docs/recipe.md.")
    ] = False,
) -> None:
    """The JSON schema of recipes, for editors; or the same as a page for people."""
    if markdown:
        from asvd_q.schema_page import recipe_page

        print(recipe_page(), end="")  # noqa: T201
        return
    from asvd_q.recipe import json_schema

    print(json.dumps(json_schema(), indent=1))  # noqa: T201
