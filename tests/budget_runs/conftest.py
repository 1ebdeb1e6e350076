"""Recipes with a budget, for a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asvd_q.compression import loop
from asvd_q.recipe import load_recipe
from tests.budget_runs.given import (
    BLOCKS,
    CHOICES,
    NAME,
    Make,
    Write,
)
from tests.cli.runner import write_recipe
from tests.support import tiny_recipe


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny model with wren's tokenizer, and a text to calibrate it on."""
    sections = {"decompose": {"rank_multiple": 4}, "quantize": {"method": "rtn"}}
    return tiny_recipe(tmp_path_factory.mktemp("inputs"), BLOCKS) | sections


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest together."""
    monkeypatch.setattr("asvd_q.report.budget.plot_budgets", lambda *args, **options: [])


@pytest.fixture
def write(inputs: dict[str, Any], tmp_path: Path) -> Write:
    """Writes a recipe with the given target and sections replaced."""

    def written(target: dict[str, Any] | None = None, place: str = ".", **sections: Any) -> Path:
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        budget = None if target is None else CHOICES | target
        return write_recipe(folder, **(inputs | {"budget": budget} | sections))

    return written


@pytest.fixture
def make(write: Write) -> Make:
    return lambda *args, **options: load_recipe(write(*args, **options))


@pytest.fixture
def compressed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the layers that are compressed from here on."""
    names: list[str] = []
    original = loop.compress_layer

    def watched(weight: Any, plan: Any, *rest: Any, **options: Any) -> Any:
        names.append(plan.name)
        return original(weight, plan, *rest, **options)

    monkeypatch.setattr(loop, "compress_layer", watched)
    return names


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compression of one layer goes wrong, which no trial has foreseen."""
    from asvd_q.compression import matrices
    from asvd_q.quantization import quantize

    current: list[str] = []
    original = loop.compress_layer

    def watched(weight: Any, plan: Any, *rest: Any, **options: Any) -> Any:
        current.append(plan.name)
        try:
            return original(weight, plan, *rest, **options)
        finally:
            current.pop()

    def quantize_or_fail(*args: Any) -> Any:
        if current == [NAME]:
            raise ValueError("no codes")
        return quantize(*args)

    monkeypatch.setattr(loop, "compress_layer", watched)
    monkeypatch.setattr(matrices, "quantize", quantize_or_fail)
