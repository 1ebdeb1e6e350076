"""Measurements on disk: only those of the same model, tokens and ranks come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asvd_q.errors import RecipeError
from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.progress import silent
from asvd_q.recipe import Recipe
from asvd_q.search.context import SearchContext
from asvd_q.search.joint import measure_jointly
from asvd_q.search.measurements import known_measurements, measured
from tests.support import tiny_llama

WINDOWS = torch.randint(3, 64, (3, 10), generator=torch.Generator().manual_seed(2))
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture
def context(tmp_path: Path) -> SearchContext:
    path = tiny_llama(tmp_path / "model")
    fields: dict[str, Any] = {
        "model": {"path": str(path)},
        "calibration": {"corpus": "python-docs", "hidden_states": "disk"},
        "decompose": {},
        "search": {"kept_ratio": 0.8},
    }
    return SearchContext(
        Recipe.model_validate(fields),
        BlockwiseModel(SourceModel.open(str(path))),
        WINDOWS,
        tmp_path / "search",
        silent,
    )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of choices in every run of the model."""
    seen: list[int] = []

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(len(args[2]))
        return measure_jointly(*args, **kwargs)

    monkeypatch.setattr("asvd_q.search.measurements.measure_jointly", spy)
    return seen


def test_only_what_is_missing_is_run(context: SearchContext, runs: list[int]) -> None:
    first = measured(context, [{}, {UP: 8}, {UP: 8, DOWN: 4}], "perplexity")
    second = measured(context, [{DOWN: 4, UP: 8}, {DOWN: 4}, {}], "perplexity")
    assert runs == [2, 1]
    assert (second[0], second[2]) == (first[2], first[0])
    assert first[0].loss == 0
    assert len({one.dense for one in (*first, *second)}) == 1
    assert [path.name for path in context.folder.iterdir() if path.name == "scratch"] == []
    expected = measure_jointly(
        context.model,
        WINDOWS,
        [{UP: 8}, {UP: 8, DOWN: 4}, {DOWN: 4}],
        context.section,
        batch_size=4,
    )
    found = (first[1].loss, first[2].loss, second[1].loss)
    assert found == pytest.approx(expected.increases, abs=1e-6)


def test_metric_tokens_and_scaling_are_in_the_key(context: SearchContext, runs: list[int]) -> None:
    measured(context, [{UP: 8}], "perplexity")
    measured(context, [{UP: 8}], "kl")
    measured(replace(context, windows=WINDOWS[:2]), [{UP: 8}], "kl")
    other = context.recipe.model_copy(
        update={"decompose": context.section.model_copy(update={"scaling": "rms"})}
    )
    measured(replace(context, recipe=other), [{UP: 8}], "kl")
    assert runs == [1, 1, 1, 1]


def test_where_nothing_may_be_run(context: SearchContext, runs: list[int]) -> None:
    (made,) = measured(context, [{UP: 8}], "kl")
    known = replace(context, known_only=True)
    assert known_measurements(known, [{UP: 8}, {UP: 4}], "kl") == [made, None]
    assert measured(known, [{UP: 8}], "kl") == [made]
    with pytest.raises(RecipeError, match="run `asvd-q search`"):
        measured(known, [{UP: 8}, {UP: 4}], "kl")
    assert runs == [1]


def test_a_damaged_or_foreign_entry_is_measured_again(
    context: SearchContext, runs: list[int]
) -> None:
    measured(context, [{UP: 8}, {UP: 16}], "kl")
    one, two = (
        path for path in context.folder.rglob("*.json") if '"ranks":{}' not in path.read_text()
    )
    one.write_bytes(two.read_bytes())
    two.write_text(two.read_text()[:30])
    measured(context, [{UP: 8}, {UP: 16}], "kl")
    assert runs == [2, 2]
