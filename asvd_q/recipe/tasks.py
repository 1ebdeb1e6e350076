"""Which tasks a model is put to."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from asvd_q.recipe.base import Count, ShortSection, Text
from asvd_q.recipe.paths import resolve_path

__all__ = ["BUILT_IN_TASKS", "CONTINUATION", "TASK_FILES", "TaskSection", "distinct_tasks"]

CONTINUATION = "python-docs-continuation"
"""The test part of python-docs as questions; see `asvd_q.evaluation.tasks.builtin`."""

BUILT_IN_TASKS = (CONTINUATION,)
TASK_FILES = (".yaml", ".yml")


class TaskSection(ShortSection):
    """One task of lm-eval. A plain string is short for `{task: …}`."""

    task: Text
    """python-docs-continuation, which needs no file; a task, group or tag of lm-eval (mmlu, piqa,
    arc_easy, …); or the path of a task file, ending in .yaml"""

    shots: Annotated[int, Field(strict=True, ge=0)] | None = None
    """Examples before every question; null takes the task's own number, or none."""

    limit: Count | None = None
    """Samples of the task, from its start; of every task of a group. null takes all."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"task": value} if isinstance(value, str) else value

    @field_validator("task")
    @classmethod
    def _found(cls, task: str, info: ValidationInfo) -> str:
        return resolve_path(task, info) if task.endswith(TASK_FILES) else task

    @property
    def is_file(self) -> bool:
        """Whether the task is a file of the user's."""
        return self.task.endswith(TASK_FILES)

    @property
    def name(self) -> str:
        """What it is called on the way: the name, or the file's without its ending."""
        return PurePath(self.task).stem if self.is_file else self.task


def distinct_tasks(tasks: tuple[TaskSection, ...]) -> tuple[TaskSection, ...]:
    """The tasks as they are.

    Raises:
        ValueError: one of them is there twice with one number of shots.
    """
    for index, section in enumerate(tasks):
        if (section.task, section.shots) in [(one.task, one.shots) for one in tasks[:index]]:
            raise ValueError(f"lists {section.name} twice: name it once, or with other shots")
    return tasks
