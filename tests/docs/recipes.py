"""Recipes that pages show, whole or in part."""

from __future__ import annotations

from pathlib import Path

import yaml

from asvd_q.exporting import make_exporter
from asvd_q.recipe import load_recipe

__all__ = ["check_recipe", "file_name", "write"]

_SECTIONS = {
    "model": {"path": "model"},
    "calibration": {"corpora": ["generated"], "sequential": True},
}
"""What sections that are shown alone are tried with."""


def check_recipe(body: str, folder: Path, where: str) -> None:
    """Fail a test where a block of YAML is no recipe; keep it where it has a file's name."""
    name = file_name(body, ".yaml")
    text = body if name else yaml.safe_dump(_SECTIONS | yaml.safe_load(body))
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
