"""docs/recipe.md says what the schemas say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asvd_q.exporter_registry import available_exporters, exporter_class
from asvd_q.methods import METHODS
from asvd_q.recipe import Recipe
from asvd_q.schema_page import recipe_page
from asvd_q.schema_page.definitions import Definitions
from asvd_q.schema_page.examples import EXAMPLES
from tests.cli.runner import command

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"


def rows(page: str) -> dict[str, list[str]]:
    """Heading → keys of the tables below it."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in page.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| `"):
            found.setdefault(heading, []).append(line.split("`")[1])
    return found


def test_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    printed = command(capsys, "schema", "--markdown").out
    assert printed == recipe_page()
    assert PAGE.read_text(encoding="utf-8") == printed, (
        "the schema has changed: asvd-q schema --markdown > docs/recipe.md"
    )


def test_every_key_has_a_row_with_a_meaning() -> None:
    page = recipe_page()
    found = rows(page)
    assert found["The recipe"] == list(Recipe.model_fields)
    definitions = Definitions(Recipe)
    assert list(definitions.sections) == [key for key in found if key in Recipe.model_fields]
    for key, definition in definitions.sections.items():
        own = set(definitions.schema_of(definition)["properties"])
        assert set(found[key]) == own or set(found["Settings of a matrix"]) | set(found[key]) == own
    for name in available_exporters():
        expected = list(exporter_class(name).options_model.model_fields)
        assert found.get(f"{name} options", []) == expected
    methods = found["Defaults by method"]
    assert {key for method in METHODS.values() for key in method.settings} == set(methods)
    empty = re.findall(r"^\| `.*\| *\|$", page, re.M)
    assert [row for row in empty if row.split("`")[1] not in methods] == []


def test_every_link_of_the_page_has_its_heading() -> None:
    page = recipe_page()
    headings = [line.lstrip("# ") for line in page.splitlines() if line.startswith("#")]
    anchors = {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= anchors
    assert len(anchors) == len(headings)


def test_every_section_has_an_example() -> None:
    assert set(EXAMPLES) == set(Definitions(Recipe).sections)


@pytest.mark.parametrize(
    "row",
    [
        "| `kept_ratio` | number &gt; 0 and ≤ 1 | `null` |",
        "| `sigma_split` | `both`, `u`, `v` or number 0 … 1 | `v` |",
        "| `damping` | number &gt; 0 | `1e-6` |",
        "| `windows` | whole number ≥ 1 or `null` | `64` |",
        "| `ranks` | mapping of texts to whole numbers ≥ 1 | `null` |",
        "| `dense` | [settings of a matrix](#settings-of-a-matrix) or `false` | – |",
        '| `include` | list of texts | `["*"]` |',
        "| `path` | text | **required** |",
        "| `external_data` | `auto`, `true` or `false` | `auto` | Weights in",
    ],
)
def test_values_are_in_words(row: str) -> None:
    assert row in recipe_page()
