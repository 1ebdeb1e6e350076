"""Tasks in a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from asvd_q.errors import RecipeError
from asvd_q.recipe import Recipe, TaskSection, load_recipe
from asvd_q.recipe.build import evaluate_section
from asvd_q.recipe.tasks import CONTINUATION

_RECIPE = """\
model: {path: model}
decompose: {scaling: none, kept_ratio: 0.8}
evaluate:
  tasks: [mmlu, {task: own.yaml, shots: 2, limit: 10}]
"""


def _load(folder: Path, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(_RECIPE)
    return load_recipe(path, overrides)


def test_a_name_is_short_for_a_task_and_a_file_is_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: own")
    section = _load(tmp_path).evaluate
    assert section is not None
    assert section.corpora == ()
    first, second = section.tasks
    assert first == TaskSection(task="mmlu")
    assert not first.is_file
    assert (second.task, second.shots, second.limit) == (str(tmp_path / "own.yaml"), 2, 10)
    assert second.is_file
    assert [task.name for task in section.tasks] == ["mmlu", "own"]


def test_written_out_it_is_the_same_recipe(tmp_path: Path) -> None:
    recipe = _load(tmp_path)
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.resolved_yaml())
    assert load_recipe(path) == recipe


def test_tasks_change_no_store(tmp_path: Path) -> None:
    with_tasks, without = _load(tmp_path), _load(tmp_path, "evaluate=null")
    assert with_tasks.compression_fields() == without.compression_fields()


def test_what_calibration_has_read_is_no_question(tmp_path: Path) -> None:
    calibration = "calibration={corpus: {source: python-docs, split: test}}"
    tasks = f"evaluate.tasks=[{CONTINUATION}]"
    with pytest.raises(RecipeError, match=f"calibration reads python-docs .* {CONTINUATION}"):
        _load(tmp_path, calibration, tasks)
    allowed = _load(tmp_path, calibration, tasks, "evaluate.allow_overlap=true")
    assert allowed.evaluate is not None
    _load(tmp_path, "calibration={corpus: python-docs}", tasks)


def test_options_are_a_section_too() -> None:
    numbers = {"split": None, "protocol": "windows", "window": None, "windows": 1, "batch_size": 1}
    section = evaluate_section([], **numbers, tasks=["a", "b"], shots=1, limit=2)  # type: ignore[arg-type]
    assert section.tasks == tuple(TaskSection(task=name, shots=1, limit=2) for name in "ab")
    with pytest.raises(RecipeError, match="--shots and --limit are for tasks"):
        evaluate_section(["python-docs"], **numbers, limit=2)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"options: evaluate.tasks.0.limit is 0"):
        evaluate_section([], **numbers, tasks=["a"], limit=0)  # type: ignore[arg-type]
