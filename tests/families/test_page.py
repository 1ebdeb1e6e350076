"""The page of models says of every model what the tests here try, and names what is refused."""

from __future__ import annotations

from pathlib import Path

from tests.families.models import MODELS, NAMES
from tests.families.table import table
from tests.families.test_others import REFUSED

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_table_of_models_is_what_is_tested() -> None:
    assert set(NAMES) == set(MODELS)
    text = PAGE.read_text(encoding="utf-8")
    assert "\n".join(table()) in text, "python -m tests.families.table prints what belongs there"


def test_what_is_refused_is_named() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    for name in REFUSED:
        assert name in text, name
