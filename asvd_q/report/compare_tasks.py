"""Accuracy of runs on tasks, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from asvd_q.evaluation.tasks.record import TaskMetric, TaskResult
from asvd_q.report.run import RunRecord

__all__ = ["TaskScore", "task_scores"]

_Key = tuple[str, str]


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task.

    Attributes:
        dense: of the run's own dense model on the same samples.
        unlike: why it may not be held against the first run that has this task; empty where it
            may. Another model is no reason: accuracy does not depend on how text is cut.
    """

    result: TaskResult
    value: TaskMetric
    dense: TaskMetric | None
    unlike: tuple[str, ...] = ()


def task_scores(records: Sequence[RunRecord]) -> list[dict[_Key, TaskScore]]:
    """(task, metric) → score of every run; of a group that has no metrics, its tasks'."""
    found = [_scores(record) for record in records]
    first = {key: score for scores in reversed(found) for key, score in scores.items()}
    return [
        {
            key: replace(score, unlike=tuple(_unlike(score.result, first[key].result)))
            for key, score in scores.items()
        }
        for scores in found
    ]


def _scores(record: RunRecord) -> dict[_Key, TaskScore]:
    dense = {one.identity: one for found in record.dense_tasks for one in found.scored}
    scores = {}
    for one in (one for found in record.tasks for one in found.scored):
        before = dense.get(one.identity)
        for name, value in one.metrics.items():
            reference = None if before is None else before.metrics.get(name)
            scores[one.task, name] = TaskScore(one, value, reference)
    return scores


def _unlike(here: TaskResult, there: TaskResult) -> Iterator[str]:
    if here.version != there.version:
        yield f"version {here.version} of the task and not {there.version}"
    if here.shots != there.shots:
        yield f"{here.shots} shots and not {there.shots}"
    if here.samples != there.samples:
        yield f"{here.samples} samples and not {there.samples}"
    elif here.sha256 != there.sha256 and here.shots == there.shots:
        yield "other questions under the same name"
