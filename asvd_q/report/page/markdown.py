"""The report as Markdown: the same tables, and tables in the place of charts."""

from __future__ import annotations

import re

from asvd_q.report.markdown import fenced
from asvd_q.report.page.content import ReportContent
from asvd_q.report.page.grid import Cell, Column, Grid, number, text
from asvd_q.report.page.maps import HeatMap
from asvd_q.report.page.sizes import size_grid
from asvd_q.report.page.templating import templates

__all__ = ["markdown_page"]

_SPECIAL = re.compile(r"[\\`*\[\]|~#]")


def markdown_page(content: ReportContent) -> str:
    """The report; equal contents give equal text."""
    # It is no HTML; `plain` escapes what comes from outside.
    environment = templates(autoescape=False)
    environment.filters["plain"] = plain
    return environment.get_template("report.md.j2").render(
        content=content,
        size_grid=size_grid(content.sizes),
        maps=[_map_grid(one) for one in content.maps],
        recipe=fenced(content.recipe, "yaml"),
    )


def plain(words: str) -> str:
    """Text that Markdown takes for nothing but text, on one line."""
    words = " ".join(words.split())
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(lambda found: "\\" + found.group(), words)


def _map_grid(heat: HeatMap) -> Grid:
    """Blocks in rows, kinds in columns."""
    rows: list[tuple[Cell, ...]] = [
        (
            text(str(block)),
            *(number(heat.values.get((kind, block)), heat.form) for kind in heat.kinds),
        )
        for block in heat.blocks
    ]
    columns = (Column("block"), *(Column(kind) for kind in heat.kinds))
    return Grid(heat.title, columns, tuple(rows))
