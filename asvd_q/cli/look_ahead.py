"""`validate` and `plan`: what a recipe is and would do."""

from __future__ import annotations

import json

from asvd_q.cli.app import COMPRESS, app
from asvd_q.cli.console import console, say
from asvd_q.cli.options import (
    BitsOption,
    JsonOption,
    RecipeArgument,
    SetOption,
    SizeOption,
    load,
    with_budget,
)

__all__ = ["plan", "validate"]


@app.command(rich_help_panel=COMPRESS)
def validate(recipe: RecipeArgument, overrides: SetOption = None) -> None:
    """Check a recipe against the schema, and its formats and their options against exporters."""
    loaded = load(recipe, overrides)
    from asvd_q.budget.format import format_count
    from asvd_q.exporting import make_exports

    exports = make_exports(loaded, str(recipe))
    if loaded.budget is not None:
        format_count(loaded, "float32", exports)  # what a format holds depends on no float type
    say(f"{recipe}: valid")


@app.command(rich_help_panel=COMPRESS)
def plan(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    size: SizeOption = None,
    bits_per_weight: BitsOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a recipe would do: layers, ranks, bytes, memory, time, exporters. Changes nothing."""
    loaded = load(recipe, with_budget(overrides, size, bits_per_weight))
    from asvd_q.pipeline import prepare_known
    from asvd_q.report.planned import plan_content, plan_remarks, plan_tables, planned
    from asvd_q.report.tables import print_table

    found = planned(*prepare_known(loaded))
    if as_json:
        print(json.dumps(plan_content(found), indent=1))  # noqa: T201
        return
    for table in plan_tables(found):
        print_table(console(), table)
    for remark in plan_remarks(found):
        say(remark)
