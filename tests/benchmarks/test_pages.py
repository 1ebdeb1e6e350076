"""README, docs and the results page say what the committed results say, and no other number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.page.blocks import PAGES, RESULTS, fill, names_in
from benchmarks.page.picture import PICTURE, fingerprint, series_of
from benchmarks.page.registry import BLOCKS, ENTRIES, claim_of, entry_named, title_of
from benchmarks.page.rendering import render
from benchmarks.page.result import Results

PENDING = {
    "browser",
    "budget-parts",
    "budget_cost",
    "budget_onnx",
    "factor_ablation",
    "kernel_times",
    "parity",
    "stacking",
}
"""Scripts that have not been run since their numbers are kept; their blocks stand as they were."""

NOT_MEASURED = {
    "README.md": {"0.7.1", "2.0", "3.11"},
    "choosing-a-recipe.md": {"2"},
    "first-run.md": {"0.8", "3.11"},
    "mathematics.md": {"0.1"},
    "methods.md": {"2", "3.2"},
    "recipe.md": {"0.02", "1.2", "2", "3.2"},
    "checkpoints.md": {"0.20", "0.50.2", "5.23", "7.6.0", "0.8"},
    "onnx.md": {"0.1.0", "0.18", "1.1", "1.30.0", "1.31.1", "4.58"},
    "parity.md": {"0.8"},
}
"""By page: versions, licences, settings and sizes that prose names."""

_BLOCK = re.compile(r"^<!-- begin .*?^<!-- end -->$", re.M | re.S)
_FENCE = re.compile(r"^( *)```.*?^\1```$", re.M | re.S)
_CODE = re.compile(r"`[^`]*`|\]\([^)]*\)|^    .*$|arXiv [\d.]+", re.M)
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)+|(?<![\w.])\d+e-\d+|(?<![\w.])\d+(?= ?%)")

pages = pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])


def outside(text: str) -> str:
    """What of a page no script writes, without code and sources."""
    for pattern in (_BLOCK, _FENCE, _CODE):
        text = pattern.sub("", text)
    return text


@pages
def test_a_page_has_the_numbers_of_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    filled, missing = fill(text, Results(), page)
    assert filled == text, "run `python -m benchmarks.results --pages`"
    assert {BLOCKS[name].entry for name in missing} <= PENDING


@pages
def test_no_measured_number_is_typed(page: Path) -> None:
    found = set(_NUMBER.findall(outside(page.read_text(encoding="utf-8"))))
    assert found <= NOT_MEASURED.get(page.name, set())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("it has 40.01 here", ["40.01"]),
        ("| a | 1.9 |", ["1.9"]),
        ("rises by 3 % or +0.5%", ["3", "0.5"]),
        ("an error of 9e-3", ["9e-3"]),
        ("4 bits, groups of 32, `alpha=0.4`\n\n    x 0.5", []),
        ("<!-- begin kept -->\n| 1.5 |\n<!-- end -->\nand 2.5", ["2.5"]),
    ],
)
def test_what_counts_as_measured(text: str, found: list[str]) -> None:
    assert _NUMBER.findall(outside(text)) == found


def test_the_results_page_is_that_of_the_results() -> None:
    assert RESULTS.read_text(encoding="utf-8") == render(Results())


def test_pending_is_what_has_no_results() -> None:
    assert {entry.name for entry in ENTRIES} - set(Results()) == PENDING
    assert set(Results()) <= {entry.name for entry in ENTRIES}


def test_the_picture_shows_the_results() -> None:
    if {"budget", "frontier"} & PENDING:
        assert not PICTURE.exists()
    else:
        assert fingerprint(series_of(Results())) in PICTURE.read_text(encoding="utf-8")


def test_every_table_has_its_script_and_its_place() -> None:
    placed = [name for entry in ENTRIES for name in entry.blocks]
    assert sorted(placed) == sorted(BLOCKS)
    for name, block in BLOCKS.items():
        assert name in entry_named(block.entry).blocks
    for entry in ENTRIES:
        assert title_of(entry)
        assert claim_of(entry), entry.module


@pytest.mark.parametrize(
    "text",
    ["<!-- begin kept -->\n", "<!-- end -->\n", "<!-- begin nothing -->\n<!-- end -->\n"],
)
def test_a_broken_mark_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"block has no|no table is called"):
        names_in(text)
