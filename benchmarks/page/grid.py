"""Tables in Markdown, and how they call things."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["CORPORA", "bold", "cells", "grid", "percent", "rise"]

CORPORA = {
    "wikitext2": "WikiText-2",
    "ptb": "PTB",
    "tinystories": "TinyStories",
    "pycode": "Python source",
}
"""The corpora of `--data`, as pages call them."""


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; bars in cells are escaped.

    Raises:
        ValueError: a row has another number of cells than there are columns.
    """
    lines = [_line(columns), "|---" * len(columns) + "|"]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"{len(row)} cells under {len(columns)} columns: {row}")
        lines.append(_line(row))
    return "\n".join(lines)


def _line(row: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def cells(values: Mapping[str, float], names: Iterable[str], places: int = 2) -> list[str]:
    """Numbers by name; a dash where there is none."""
    return [f"{values[name]:.{places}f}" if name in values else "–" for name in names]


def bold(text: str, when: bool) -> str:
    """The text, in bold where it deserves that."""
    return f"**{text}**" if when else text


def percent(share: float, places: int = 1) -> str:
    """A signed change: "+2.5 %"; nothing smaller than what is shown has a sign."""
    text = f"{100 * share:+.{places}f}".replace("-", "−")
    return f"{text[1:] if not float(text[1:]) else text} %"


def rise(found: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Relative rise of the perplexity, geometric mean over the corpora that both have."""
    shared = found.keys() & reference.keys()
    logs = [math.log(found[name] / reference[name]) for name in sorted(shared)]
    return math.exp(sum(logs) / len(logs)) - 1
