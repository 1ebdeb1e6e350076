"""What tests of studies share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import tiny_recipe


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model of 14 layers and two texts."""
    folder = tmp_path_factory.mktemp("study")
    tiny_recipe(folder, 2)
    text = (folder / "text.txt").read_text(encoding="utf-8")
    (folder / "read.txt").write_text(text[::-1], encoding="utf-8")
    return folder
