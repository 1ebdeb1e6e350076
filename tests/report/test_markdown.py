"""The report as Markdown."""

from __future__ import annotations

from pathlib import Path

import pytest

from asvd_q.report.page import markdown_page, report_content
from asvd_q.report.page.markdown import plain
from asvd_q.report.run import RunRecord
from tests.report.records import layer, llama, record, run_folder


def _text(folder: Path, run: RunRecord) -> str:
    return markdown_page(report_content(run_folder(folder, run), run))


def test_tables_are_whole(tmp_path: Path) -> None:
    lines = _text(tmp_path, record()).splitlines()
    tables: list[list[str]] = [[]]
    for line in lines:
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    found = [table for table in tables if table]
    assert len(found) == 1 + 1 + 1 + 3 + 1 + 3  # quality, parity, bytes, maps, layers, how
    for table in found:
        assert {line.count("|") for line in table} == {table[0].count("|")}, table
        assert set(table[1]) <= set("|-: ")
    [layers] = [table for table in found if table[0].startswith("| layer |")]
    assert len(layers) == 2 + len(llama())


def test_sections_follow_each_other_with_one_empty_line(tmp_path: Path) -> None:
    text = _text(tmp_path, record(warnings=("one", "two")))
    assert "\n\n\n" not in text
    assert text.endswith("```\n")
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads[0] == "## Warnings"
    for line, after in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        if line.startswith("#"):
            assert after == ""
    assert "- one\n- two\n" in text


@pytest.mark.parametrize(
    ("words", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("<script>", "&lt;script&gt;"),
        ("*x* `y` [z](u)", r"\*x\* \`y\` \[z\](u)"),
        ("two\nlines", "two lines"),
        ("model.layers.0.q_proj", "model.layers.0.q_proj"),
    ],
)
def test_text_stays_text(words: str, escaped: str) -> None:
    assert plain(words) == escaped


def test_hostile_names_break_no_table(tmp_path: Path) -> None:
    text = _text(tmp_path, record([layer("a|<b>\n# c", rank=8)]))
    assert r"| a\|&lt;b&gt; \# c | 64 × 64 |" in text


def test_a_recipe_does_not_end_its_own_fence(tmp_path: Path) -> None:
    run = record()
    folder = run_folder(tmp_path, run)
    (folder / "recipe.yaml").write_text("name: '````'\n", encoding="utf-8")
    text = markdown_page(report_content(folder, run))
    assert "`````yaml\nname: '````'\n`````\n" in text


def test_equal_runs_have_equal_text(tmp_path: Path) -> None:
    assert _text(tmp_path / "one", record()) == _text(tmp_path / "two", record())


def test_nothing_measured_and_nothing_exported(tmp_path: Path) -> None:
    text = _text(tmp_path, record(quality=(), dense_quality=(), artefacts=(), corpora=()))
    assert "Nothing was evaluated." in text
    assert "Nothing was exported." in text
    assert "\n\n\n" not in text
