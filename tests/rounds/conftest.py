"""Recipes with a target, for a tiny model, and failures of its layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from asvd_q.compression import loop, matrices
from asvd_q.plan import LayerPlan
from asvd_q.quantization import quantize
from asvd_q.recipe import Recipe, load_recipe
from tests.cli.runner import write_recipe
from tests.rounds.given import (
    BLOCKS,
    NAME,
    SIZE,
    added_errors,
)
from tests.support import tiny_recipe


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny model with wren's tokenizer, and a text to calibrate it on."""
    return tiny_recipe(tmp_path_factory.mktemp("inputs"), BLOCKS)


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest together."""
    for name in ("plot_sensitivities", "plot_kept_ratios", "plot_predictions"):
        monkeypatch.setattr(f"asvd_q.report.search.{name}", lambda *args, **options: None)


@pytest.fixture
def make_recipe(inputs: dict[str, Any], tmp_path: Path) -> Callable[..., Recipe]:
    """Writes a recipe with sections replaced, and reads it."""

    def make(place: str = ".", **sections: Any) -> Recipe:
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        fields: dict[str, Any] = {
            **inputs,
            "decompose": {"rank_multiple": 2},
            "search": {"size": f"{SIZE} B", "verify": False},
            "quantize": {"bits": 8, "group_size": 16},
        }
        return load_recipe(write_recipe(folder, **(fields | sections)))

    return make


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Makes the quantization of some layers fail.

    Returns the names of the layers that are compressed from then on.
    """

    def install(*names: str) -> list[str]:
        compressed: list[str] = []
        original = loop.compress_layer

        def watched(weight: Tensor, plan: LayerPlan, *rest: Any, **options: Any) -> Any:
            compressed.append(plan.name)
            return original(weight, plan, *rest, **options)

        def quantize_or_fail(*args: Any) -> Any:
            if compressed[-1] in names:
                raise ValueError("no codes\nsecond line")
            return quantize(*args)

        monkeypatch.setattr(loop, "compress_layer", watched)
        monkeypatch.setattr(matrices, "quantize", quantize_or_fail)
        return compressed

    return install


@pytest.fixture
def bounded(make_recipe: Callable[..., Recipe]) -> Callable[..., tuple[Recipe, str]]:
    """A recipe under a bound that its one layer of 2 bits exceeds, and that layer."""
    quantization = {"bits": 8, "group_size": 16, "overrides": [{"match": NAME, "bits": 2}]}
    size = {"size": f"{SIZE} B", "verify": False}
    (worst, most), (_, second), *_ = added_errors(
        make_recipe, quantize=quantization, search=size
    ).items()
    assert worst == NAME
    assert most > 10 * second

    def make(place: str = ".", **sections: Any) -> tuple[Recipe, str]:
        settings = quantization | {"max_error": (most + second) / 2}
        return make_recipe(place, quantize=settings, search=size, **sections), worst

    return make
