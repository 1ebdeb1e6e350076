"""What tests of whole searches share. Each of their modules has a fixture `prepared`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from asvd_q.preparation import Prepared, read_tokens
from asvd_q.progress import silent
from asvd_q.recipe import Recipe
from asvd_q.search.ranks import SearchResult, search_ranks


@pytest.fixture(scope="module")
def windows(prepared: Prepared) -> Tensor:
    """The calibration tokens of the module's recipes."""
    found = read_tokens(prepared).calibration
    assert found is not None
    return found


@pytest.fixture
def search_in(prepared: Prepared, windows: Tensor, tmp_path: Path) -> Callable[..., SearchResult]:
    """Carries out a recipe's search; what is measured is kept in a folder of the test's own."""
    model = prepared.model()

    def run(recipe: Recipe, *, known_only: bool = False, place: str = "search") -> SearchResult:
        folder = tmp_path / place
        return search_ranks(
            recipe, model, windows, "bfloat16", folder, silent, known_only=known_only
        )

    return run
