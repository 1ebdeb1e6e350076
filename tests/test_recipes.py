"""The shipped recipes run on fewer tokens, and with fewer forms to try; every export is proven."""

from __future__ import annotations

from pathlib import Path

import pytest

from asvd_q.pipeline import run
from asvd_q.progress import silent
from asvd_q.recipe import load_recipe

_RECIPES = Path(__file__).parent.parent / "recipes"
_FEWER = ("evaluate.windows=2", "evaluate.window=128")
_FEWER_FORMS = ("budget.ranks=2", "budget.group_sizes=[64]", "budget.correction_ranks=[8]")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(_RECIPES.glob("wren-*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipe(path: Path, tmp_path: Path) -> None:
    overrides = [f"output={tmp_path / 'run'}", *_FEWER]
    recipe = load_recipe(path, overrides)
    if recipe.calibration is not None:
        overrides.append("calibration.samples=4")
    if recipe.budget is not None:
        overrides += _FEWER_FORMS
    recipe = load_recipe(path, overrides)
    record = run(recipe, silent)
    assert all(artefact.proof.status == "proven" for artefact in record.artefacts)
    assert [artefact.format for artefact in record.artefacts] == [
        section.format for section in recipe.export
    ]
    assert record.total_bytes.ratio < 0.9
    for dense, compressed in zip(record.dense_quality, record.quality, strict=True):
        assert compressed.perplexity < 2 * dense.perplexity
