"""How numbers are put into words, where a table would be too much."""

from __future__ import annotations

from asvd_q.report.tables import size

__all__ = ["from_to"]


def from_to(before: int, after: int) -> str:
    """Bytes before and after, with one unit where both have it: "9.00 → 2.02 MiB"."""
    first, last = size(before), size(after)
    if first == last:
        return last
    number, unit = first.split(" ")
    return f"{number if last.endswith(f' {unit}') else first} → {last}"
