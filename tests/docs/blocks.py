"""The code blocks of a page, and what it says of itself to its tests.

A comment says how a page is tested, and readers do not see it:

    <!-- test: slow -->                        longer than a few seconds
    <!-- test: after guide/first-run.md -->    begins with the folder that another page leaves
    <!-- test: source -->                      the folder has a copy of the packages' source
    <!-- test: run                             commands that a reader has already given
    $ asvd-q run …
    -->
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import dedent

__all__ = ["DOCS", "PAGES", "REPOSITORY", "Block", "Page"]

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)(?: +(?P<note>[^\n]*))?\n(?P<body>.*?)^ *```$"
    r"|^<!-- test: run\n(?P<hidden>.*?)^-->$",
    re.M | re.S,
)
_SAYS = re.compile(r"^<!-- test: (\w+)(?: (\S+))? -->$", re.M)
_ITEM = re.compile(r"^ *(?:[-*]|\d+\.) .*(?:\n+ +\S.*)*", re.M)
_INDENTED = re.compile(r"(?:\A|\n)\n(?:    |\t)\S", re.M)


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        line: of the page, where the body begins, from 1.
        language: the first word of its info string.
        note: the rest of it.
    """

    line: int
    language: str
    note: str
    body: str

    @property
    def runs(self) -> bool:
        """Whether it is to be run and not only to be checked."""
        return not self.note.startswith("no-run")


@dataclass(frozen=True)
class Page:
    """A page of Markdown."""

    path: Path

    @property
    def name(self) -> str:
        """Its path in the repository."""
        top = REPOSITORY if self.path.is_relative_to(REPOSITORY) else self.path.parent
        return self.path.relative_to(top).as_posix()

    @cached_property
    def text(self) -> str:
        """All of it."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """What is left of it without its blocks."""
        return _BLOCK.sub("", self.text)

    @cached_property
    def blocks(self) -> list[Block]:
        """In their order."""
        return [
            Block(
                line=self.text.count("\n", 0, found.start()) + 2,
                language=found["language"] if found["hidden"] is None else "console",
                note=found["note"] or "",
                body=dedent(found["body"] if found["hidden"] is None else found["hidden"]),
            )
            for found in _BLOCK.finditer(self.text)
        ]

    @property
    def says(self) -> dict[str, str]:
        """Words for its tests, and what stands behind them."""
        return dict(_SAYS.findall(self.text))

    @property
    def is_slow(self) -> bool:
        """Whether it takes longer than a few seconds."""
        return bool(self.says.keys() & {"slow", "after"})

    @property
    def has_indented_code(self) -> bool:
        """Whether code stands in it without a language, which nobody would run."""
        return _INDENTED.search(_ITEM.sub("", self.prose)) is not None
