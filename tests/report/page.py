"""Reads a report's page as a browser's parser would, as far as its tests ask."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

__all__ = ["Read", "read"]

_VOID = {"meta", "link", "br", "img", "input", "hr"}


@dataclass
class Read:
    """What a page holds.

    Attributes:
        elements: (name, attributes) in order; `text` is what stands between them.
        tables: id → rows of cells.
        charts: labels of the drawings.
        unclosed: elements whose ends are not where they belong.
    """

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    charts: list[str] = field(default_factory=list)
    unclosed: list[str] = field(default_factory=list)

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == name]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.read = Read()
        self._open: list[str] = []
        self._table: list[list[str]] | None = None
        self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._begin(tag, dict(attrs))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._begin(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.read.unclosed.append(tag)
        if tag in ("td", "th"):
            self._cell = False
        if tag == "table":
            self._table = None

    def handle_data(self, data: str) -> None:
        self.read.text.append(data)
        if self._cell and self._table is not None:
            self._table[-1][-1] += data

    def _begin(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.read.elements.append((tag, attributes))
        if tag == "svg":
            self.read.charts.append(attributes["aria-label"] or "")
        if tag == "table":
            self._table = self.read.tables[attributes["id"] or ""] = []
        if self._table is not None and tag == "tr":
            self._table.append([])
        if self._table is not None and tag in ("td", "th"):
            self._table[-1].append("")
            self._cell = True


def read(page: str) -> Read:
    """Parse a page."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    return parser.read
