"""Tables of a report as data: what a cell says, and what it is sorted by."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NOTHING", "Cell", "Column", "Grid", "number", "share", "text"]


@dataclass(frozen=True)
class Column:
    """A head.

    Attributes:
        hint: what the numbers are, where the label is too short to say it.
        numeric: set to the right.
    """

    label: str
    hint: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """Finished text.

    Attributes:
        value: what the column is sorted by; None comes last.
        mark: "good" or "bad", where a reader's eye should stop.
    """

    text: str
    value: float | str | None = None
    mark: str = ""


@dataclass(frozen=True)
class Grid:
    """A title, heads and rows; the first cell of a row names it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


NOTHING = Cell("–")


def text(value: str, order: float | str | None = None, mark: str = "") -> Cell:
    """Words, sorted as they read or by `order`."""
    return Cell(value, value if order is None else order, mark)


def number(value: float | None, form: str = "", mark: str = "") -> Cell:
    """A number in a format specification of Python's; a dash for None."""
    return NOTHING if value is None else Cell(f"{value:{form}}", float(value), mark)


def share(value: float | None) -> Cell:
    """A share of one in percent."""
    return number(value, ".2%")
