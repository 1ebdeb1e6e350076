"""Amounts that a recipe gives as text: "3.2 GiB", "+2 %"."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from asvd_q.recipe.base import Number, Text

__all__ = ["Perplexity", "Size", "perplexity_rise", "size_bytes"]

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_RISE = re.compile(r"\s*\+\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*")
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]i?B|B)\s*", re.IGNORECASE)


def size_bytes(size: str) -> int:
    """Bytes of a size that `Size` let through."""
    found = _SIZE.fullmatch(size)
    assert found is not None
    return int(float(found[1]) * _UNITS[found[2].upper()])


def perplexity_rise(perplexity: float | str | None) -> float | None:
    """A rise as a share of the dense model's perplexity: 0.02 for "+2 %"; None for a number."""
    if not isinstance(perplexity, str):
        return None
    found = _RISE.fullmatch(perplexity)
    assert found is not None
    return float(found[1]) / 100


def _readable_size(size: str) -> str:
    if not _SIZE.fullmatch(size):
        raise ValueError("allowed is a number and a unit: B, KB, MB, GB, KiB, MiB or GiB")
    return size


def _readable_perplexity(value: Any) -> Any:
    if isinstance(value, str):
        rise = _RISE.fullmatch(value)
        readable = rise is not None and float(rise[1]) > 0
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        readable = value is None or (number and 0 < value < math.inf)
    if not readable:
        raise ValueError(
            'allowed is a number above 0, or a rise above the dense model\'s such as "+2 %"'
        )
    return value


Size = Annotated[Text, AfterValidator(_readable_size)]
Perplexity = Annotated[Number | Text | None, BeforeValidator(_readable_perplexity)]
