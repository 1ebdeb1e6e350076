"""Tables and programs as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from asvd_q.report.tables import Table

__all__ = ["fenced", "markdown_table"]


def markdown_table(table: Table, *, align: bool = False) -> str:
    """A table without its title; cells keep to their line and column.

    Args:
        align: all columns but the first to the right, as a terminal has them.
    """
    rest = "---:" if align else "---"
    lines = [table.columns, ("---", *[rest] * (len(table.columns) - 1)), *table.rows]
    return "\n".join(_line(line) for line in lines)


def fenced(text: str, language: str) -> str:
    """A fenced block that its own content cannot end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"
