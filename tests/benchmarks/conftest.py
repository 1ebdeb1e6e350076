"""What tests of the scripts share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import WREN, tiny_llama


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model of 14 layers and two short texts."""
    folder = tmp_path_factory.mktemp("benchmarks")
    tiny_llama(folder / "model", hidden=32, intermediate=48, vocabulary=8192)
    for file in WREN.glob("tokenizer*"):
        shutil.copy(file, folder / "model")
    text = (WREN / "README.md").read_text(encoding="utf-8")
    for name, part in (("notes", text), ("lines", text[::-1])):
        for split in ("train", "test"):
            (folder / f"{name}.{split}.txt").write_text(part, encoding="utf-8")
    return folder
