"""The benchmark of optimum's runtime: what counts as a difference, and its environment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asvd_q.recipe import load_recipe
from asvd_q_exporters.onnx import OnnxOptions
from benchmarks import optimum_runtime
from benchmarks._optimum_artefacts import FORMS, Made, random_families
from benchmarks.optimum_runtime import Reference, compare

REFERENCE = Reference(
    logits=np.arange(1, 13, dtype=np.float32).reshape(1, 3, 4),
    greedy=np.array([[1, 2], [3, 0]]),
    steps=np.array([[[0, 9, 0, 0], [0, 0, 9, 0]], [[0, 0, 0, 9], [9, 8.99, 0, 0]]], np.float32),
)


def written() -> dict[str, Any]:
    """What is found where nothing differs."""
    found: dict[str, Any] = {"shapes_set": np.array(False)}
    for binding in ("off", "on"):
        found[f"{binding}.logits"] = REFERENCE.logits.copy()
        found[f"{binding}.alone"] = REFERENCE.greedy.copy()
        found[f"{binding}.batch"] = REFERENCE.greedy.copy()
    for package in ("transformers", "optimum"):
        found[f"pipeline.{package}"] = REFERENCE.greedy.copy()
    return found


def test_equal_numbers_agree() -> None:
    rows = list(compare("one", "form", written(), REFERENCE))
    assert [row.binding for row in rows] == [False, True]
    assert all(row.agrees for row in rows)
    assert [(row.alone_equal, row.batch_equal, row.tokens) for row in rows] == [(4, 4, 4)] * 2


@pytest.mark.parametrize("what", ["on.logits", "on.alone"])
def test_what_one_way_computes_otherwise_is_seen_there(what: str) -> None:
    found = written()
    found[what].flat[-1] += 1
    without, with_binding = compare("one", "form", found, REFERENCE)
    assert without.agrees
    assert not with_binding.agrees


@pytest.mark.parametrize(("token", "agrees"), [(1, True), (2, False)])
def test_a_batch_may_break_a_tie_otherwise(token: int, agrees: bool) -> None:
    found = written()
    found["on.batch"][1, 1] = token
    _, row = compare("one", "form", found, REFERENCE)
    assert row.batch_equal == 3
    assert row.agrees is agrees
    gap = REFERENCE.steps[1, 1, 0] - REFERENCE.steps[1, 1, token]
    assert row.tie == pytest.approx(gap / REFERENCE.steps[1, 1].std())


def test_what_comes_after_another_token_does_not_count() -> None:
    found = written()
    found["off.batch"][0] = [3, 2]
    row, _ = compare("one", "form", found, REFERENCE)
    assert row.batch_equal == 2
    assert not row.agrees


def test_a_pipeline_that_differs_is_named() -> None:
    found = written()
    found["pipeline.optimum"][0, 0] += 1
    for row in compare("one", "form", found, REFERENCE):
        assert row.pipelines == {"transformers": True, "optimum": False}
        assert not row.agrees


def test_what_cannot_be_loaded_agrees_with_nothing() -> None:
    found = {"error": np.array("ValueError: no such file")}
    (row,) = compare("one", "form", found, REFERENCE)
    assert row.failed == "ValueError: no such file"
    assert not row.agrees


def test_an_interpreter_without_optimum_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="optimum"):
        optimum_runtime._in_optimum(
            Path(sys.executable), [Made("one", "form", tmp_path, (), [[5, 6]])], tmp_path
        )


def test_forms_are_recipes_for_onnx() -> None:
    root = Path(optimum_runtime.__file__).parent.parent
    options = [
        OnnxOptions.model_validate(target.options)
        for recipe, overrides in FORMS.values()
        for target in load_recipe(root / "recipes" / recipe, overrides).export
    ]
    assert len(options) == len(FORMS)
    assert {(one.dtype, one.operators, one.external_data) for one in options} == {
        ("float32", "contrib", "auto"),
        ("float16", "contrib", "auto"),
        ("float32", "contrib", True),
        ("float32", "standard", "auto"),
    }


@pytest.mark.slow
def test_a_family_is_made_in_every_form_and_has_a_reference(tmp_path: Path) -> None:
    made = list(random_families(("gpt2",), tmp_path))
    assert [(one.model, one.form) for one in made] == [("gpt2", "ASVD"), ("gpt2", "ASVD + RTN 4")]
    for one in made:
        assert not one.texts
        assert len({len(row) for row in one.ids}) == len(one.ids)
        reference = optimum_runtime._reference(one)
        assert reference.greedy.shape == (len(one.ids), 32)
        assert (reference.steps.argmax(-1) == reference.greedy).mean() > 0.9


def test_its_environment_computes_with_our_versions() -> None:
    root = Path(optimum_runtime.__file__).parent.parent
    pins = (root / "benchmarks/optimum-requirements.txt").read_text().splitlines()
    ours = (root / "constraints.txt").read_text().splitlines()
    for name in ("torch", "onnxruntime", "numpy"):
        assert {pin for pin in pins if pin.startswith(f"{name}==")} == {
            pin for pin in ours if pin.startswith(f"{name}==")
        }
