"""The report as Markdown: the same tables, and tables in the place of charts."""

from __future__ import annotations

import re
from pathlib import Path

from asvd_q.report.page.content import ReportContent
from asvd_q.report.page.grid import Cell, Column, Grid, number, text
from asvd_q.report.page.maps import HeatMap
from asvd_q.report.page.sizes import size_grid

__all__ = ["markdown_page"]

_FOLDER = Path(__file__).parent / "templates"
_SPECIAL = re.compile(r"[\\`*\[\]|~#]")


def markdown_page(content: ReportContent) -> str:
    """The report; equal contents give equal text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=False,  # it is no HTML; `plain` escapes what comes from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = plain
    return environment.get_template("report.md.j2").render(
        content=content,
        size_grid=size_grid(content.sizes),
        maps=[_map_grid(one) for one in content.maps],
        fence=_fence(content.recipe),
    )


def plain(words: str) -> str:
    """Text that Markdown takes for nothing but text, on one line."""
    words = " ".join(words.split())
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(lambda found: "\\" + found.group(), words)


def _fence(code: str) -> str:
    """Backticks that end nothing inside the code."""
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))


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
