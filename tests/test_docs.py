"""Recipes that the documentation shows are recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from asvd_q.exporting import make_exporter
from asvd_q.recipe import load_recipe

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])
SHOWN = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    )
]


@pytest.mark.parametrize("block", SHOWN)
def test_a_recipe_that_is_shown_is_one(block: str, tmp_path: Path) -> None:
    """Sections that are shown alone are tried with a model and a calibration."""
    calibration = {"corpora": ["generated"], "sequential": True}
    sections = {"model": {"path": "model"}, "calibration": calibration}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections | yaml.safe_load(block)), encoding="utf-8")
    recipe = load_recipe(path)
    for index, export in enumerate(recipe.export):
        make_exporter(export.format, export.options, where=f"export.{index}", file=path.name)
