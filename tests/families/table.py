"""The table of docs/models.md, from what the tests here try: `python -m tests.families.table`."""

from __future__ import annotations

from tests.families.columns import COLUMNS, FACTORS_ALONE
from tests.families.models import MODELS, NAMES
from tests.families.test_others import NO_GRAPH, ONLY_FACTORS, WORKING

__all__ = ["table"]

_METHODS = {"decompose": "asvd", "RTN, GPTQ": "rtn", "NF4": "asvd-nf4"}
"""Heading → the recipe that shows it."""

_FORMATS = ("onnx", "gptq", "compressed-tensors", "bitsandbytes", "peft", "transformers")


def table() -> list[str]:
    """Lines of Markdown: one row per model, one column per method and per format."""
    headings = ["", *_METHODS, *(f"`{name}`" for name in _FORMATS)]
    lines = [_row(headings), "|---" * len(headings) + "|"]
    held = {name for column in COLUMNS.values() for name in column.formats}
    methods = ["yes" if name in COLUMNS else "–" for name in _METHODS.values()]
    for family in MODELS:
        formats = [_held(family, name) if name in held else "–" for name in _FORMATS]
        lines.append(_row([NAMES[family], *methods, *formats]))
    for name in WORKING:
        gptq = "factors" if name in ONLY_FACTORS else "yes"
        onnx = "no" if name in NO_GRAPH else "yes"
        lines.append(_row([name, "yes", "yes", "–", onnx, gptq, "–", "–", "–", "yes"]))
    return lines


def _held(family: str, format: str) -> str:
    return "factors" if (family, format) in FACTORS_ALONE else "yes"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(table()))
