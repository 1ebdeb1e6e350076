"""The shipped recipes run as they are, only on fewer tokens; every export is proven."""

from __future__ import annotations

from pathlib import Path

import pytest

from asvd_q.pipeline import run
from asvd_q.recipe import load_recipe

_RECIPES = Path(__file__).parent.parent / "recipes"
_FEWER = ("evaluate.windows=2", "evaluate.window=128")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(_RECIPES.glob("wren-*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipe(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, [f"output={tmp_path / 'run'}", *_FEWER])
    if recipe.calibration is not None:
        recipe = load_recipe(
            path,
            [f"output={tmp_path / 'run'}", *_FEWER, "calibration.samples=4"],
        )
    record = run(recipe, lambda stage, done, total: None)
    assert all(artefact.proof.status == "proven" for artefact in record.artefacts)
    assert [artefact.format for artefact in record.artefacts] == [
        section.format for section in recipe.export
    ]
    assert record.total_bytes.ratio < 0.9
    for dense, compressed in zip(record.dense_quality, record.quality, strict=True):
        assert compressed.perplexity < 2 * dense.perplexity
