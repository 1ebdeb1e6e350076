"""What came of a task. Loads neither torch nor lm-eval."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

__all__ = ["AssessedTasks", "Item", "TaskMetric", "TaskOutcome", "TaskResult", "agreement"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskMetric(_Frozen):
    """One metric.

    Attributes:
        error: standard error; None where lm-eval has none.
        higher_is_better: None where a task does not say.
    """

    value: float
    error: float | None = None
    higher_is_better: bool | None = None


class TaskResult(_Frozen):
    """How well a model does at a task, or at a group of them.

    Attributes:
        task, version: as lm-eval names them.
        shots: examples before every question; None where the tasks of a group differ.
        limit: samples of every task at most, None for all.
        samples: that were put to the model.
        sha256: of the questions as the model gets them, and their answers.
        metrics: by name; a filter other than lm-eval's `none` stands behind it in brackets.
        agreement: share of the samples with the answer that the dense model gives.
        runtime: what computed the logits.
        parts: the tasks of a group.
    """

    task: str
    version: str
    shots: int | None
    limit: int | None = None
    samples: int
    sha256: str
    metrics: dict[str, TaskMetric]
    agreement: float | None = None
    runtime: str
    parts: tuple[TaskResult, ...] = ()

    @property
    def identity(self) -> tuple[str, int | None, str]:
        """Equal for results that models have on the same questions."""
        return self.task, self.shots, self.sha256

    @property
    def scored(self) -> tuple[TaskResult, ...]:
        """Those with numbers: of a group whose tasks are not taken together, the tasks'."""
        return (self,) if self.metrics else self.parts


@dataclass(frozen=True)
class AssessedTasks:
    """Results of a model, and of the dense one where it was put to the same tasks."""

    results: tuple[TaskResult, ...]
    dense: tuple[TaskResult, ...] = ()


@dataclass(frozen=True)
class Item:
    """A model's answer to one sample.

    Attributes:
        task: of lm-eval, which for a group is one of its tasks.
        answer: number of the likeliest option; whether the one there is would be said; the text.
            None where a task asks for no answer.
        loglikelihoods: of the options.
    """

    task: str
    sample: int
    answer: int | bool | str | None
    loglikelihoods: tuple[float, ...] = ()


@dataclass(frozen=True)
class TaskOutcome:
    """A result and the answers behind it."""

    result: TaskResult
    items: tuple[Item, ...]

    def beside(self, dense: TaskOutcome) -> TaskOutcome:
        """The same with the agreement of its answers, all and part by part, with the dense ones."""
        parts = tuple(
            part.model_copy(
                update={"agreement": agreement(_of(part, self.items), _of(part, dense.items))}
            )
            for part in self.result.parts
        )
        found = {"agreement": agreement(self.items, dense.items), "parts": parts}
        return TaskOutcome(self.result.model_copy(update=found), self.items)


def agreement(first: tuple[Item, ...], second: tuple[Item, ...]) -> float | None:
    """Share of the samples with equal answers; None where there are no answers to compare."""
    pairs = [
        (one.answer, other.answer)
        for one, other in zip(first, second, strict=True)
        if one.answer is not None
    ]
    return sum(one == other for one, other in pairs) / len(pairs) if pairs else None


def _of(part: TaskResult, items: tuple[Item, ...]) -> tuple[Item, ...]:
    return tuple(item for item in items if item.task == part.task)
