"""Recipes that pages show, whole or in part."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from asvd_q.exporting import make_exporter
from asvd_q.recipe import load_recipe
from asvd_q.study.load import load_study

__all__ = ["check_recipe", "file_name", "write"]

_SECTIONS = {
    "model": {"path": "model"},
    "calibration": {"corpora": ["generated"], "sequential": True},
}
"""What sections that are shown alone are tried with."""


def check_recipe(body: str, folder: Path, where: str) -> None:
    """Fail a test where YAML is no recipe and no study; keep it where it has a file's name."""
    name, given = file_name(body, ".yaml"), yaml.safe_load(body)
    if "vary" in given:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            load_study(write(folder, name or ".shown.yaml", body))
        return
    text = body if name else yaml.safe_dump(_SECTIONS | given)
    recipe = load_recipe(write(folder, name or ".shown.yaml", text))
    for index, export in enumerate(recipe.export):
        make_exporter(export.format, export.options, where=f"export.{index}", file=where)


def file_name(body: str, ending: str) -> str:
    """The path that a block has in a comment on top; empty where it is none."""
    line = body.partition("\n")[0]
    name = line.removeprefix("# ").strip()
    return name if line.startswith("# ") and name.endswith(ending) and " " not in name else ""


def write(folder: Path, name: str, text: str) -> Path:
    """Write a reader's file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
