"""Tables of numbers in README and docs: made of the results, never typed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from asvd_q.files import write_text
from benchmarks.page.registry import BLOCKS
from benchmarks.page.result import MissingResultError, Results

__all__ = ["PAGES", "RESULTS", "block_text", "fill", "fill_pages", "names_in", "section_of"]

_ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = _ROOT / "benchmarks" / "RESULTS.md"
PAGES = (_ROOT / "README.md", *sorted((_ROOT / "docs").rglob("*.md")))

_BLOCK = re.compile(r"^<!-- begin ([\w-]+) -->\n(.*?)^<!-- end -->$", re.M | re.S)
_MARK = re.compile(r"^<!-- (?:begin .*|end) -->$", re.M)


def names_in(text: str) -> list[str]:
    """The blocks of a page, in order.

    Raises:
        ValueError: a mark has no partner, or a block no table of its name.
    """
    names = [match[1] for match in _BLOCK.finditer(text)]
    if len(_MARK.findall(text)) != 2 * len(names):
        raise ValueError("a block has no beginning or no end")
    for name in names:
        if name not in BLOCKS:
            raise ValueError(f"no table is called {name!r}; there are {', '.join(BLOCKS)}")
    return names


def block_text(name: str, results: Results, page: Path) -> str:
    """A table, and below it where its numbers come from.

    Raises:
        MissingResultError: a script that it needs has not been run.
    """
    block = BLOCKS[name]
    table = block.render(results)
    result = results[block.entry]
    link = os.path.relpath(RESULTS, page.parent)
    source = f"[`{result.command}`, {result.date}]({link}#{section_of(block.entry)})"
    return f"{table}\n\n{source}\n"


def section_of(entry: str) -> str:
    """The anchor of an entry on the results page."""
    return entry.replace("_", "-")


def fill(text: str, results: Results, page: Path) -> tuple[str, list[str]]:
    """A page with its blocks written anew.

    Returns:
        The text, and the names of blocks that stay as they are for want of results.
    """
    names_in(text)
    missing: list[str] = []

    def written(match: re.Match[str]) -> str:
        name = match[1]
        try:
            found = block_text(name, results, page)
        except MissingResultError:
            missing.append(name)
            return match[0]
        return f"<!-- begin {name} -->\n{found}<!-- end -->"

    return _BLOCK.sub(written, text), missing


def fill_pages(results: Results) -> list[str]:
    """Write the blocks of README and docs anew; those that stay as they are, in words."""
    left = []
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after, missing = fill(before, results, page)
        if after != before:
            write_text(page, after)
        left += [f"{page.relative_to(_ROOT)}: {name} has no results yet" for name in missing]
    return left
