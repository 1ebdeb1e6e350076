"""What can be said of every page without running it: recipes are recipes, options are there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, REPOSITORY, Page
from tests.docs.checking import check_command
from tests.docs.console import steps, words_of
from tests.docs.recipes import check_recipe

# What pages that change the source show is for that source alone.
CASES = [page for page in map(Page, PAGES) if "source" not in page.says]


@pytest.mark.parametrize("page", CASES, ids=lambda page: page.name)
def test_recipes_and_options_are_right(page: Page, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "recipes", tmp_path / "recipes")
    for block in page.blocks:
        where = f"{page.name}, line {block.line}"
        if block.language == "yaml":
            check_recipe(block.body, tmp_path, where)
        elif block.language in ("console", "bash"):
            for step in steps(block.language, block.body):
                if not step.fails:
                    check_command(words_of(step.command), tmp_path, f"{where}: {step.command}")
