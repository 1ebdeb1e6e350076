"""Accuracy on tasks as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asvd_q.evaluation.tasks.record import AssessedTasks, TaskMetric, TaskResult
from asvd_q.report.tables import Table

__all__ = ["metric_text", "task_table", "tasks_content"]


def task_table(results: Sequence[TaskResult], dense: Sequence[TaskResult] = ()) -> Table:
    """One row per metric, the dense model's value beside it where it is known.

    Of a group whose tasks are not taken together, the rows are the tasks'.
    """
    before = {one.identity: one for found in dense for one in (found, *found.parts)}
    rows: list[tuple[str, ...]] = []
    for result in results:
        for shown in result.scored:
            reference = before.get(shown.identity)
            for number, (name, metric) in enumerate(shown.metrics.items()):
                first = number == 0
                row = (
                    shown.task if first else "",
                    _shots(shown) if first else "",
                    str(shown.samples) if first else "",
                    name,
                )
                if not dense:
                    rows.append((*row, metric_text(metric)))
                    continue
                old = None if reference is None else reference.metrics.get(name)
                same = shown.agreement if first else None
                rows.append(
                    (
                        *row,
                        "–" if old is None else metric_text(old),
                        metric_text(metric),
                        "–" if old is None else f"{metric.value - old.value:+.4f}",
                        f"{same:.2%}" if same is not None else "" if number else "–",
                    )
                )
    columns = ("task", "shots", "samples", "metric")
    values = ("dense", "compressed", "change", "same answer") if dense else ("value",)
    return Table("Tasks", (*columns, *values), tuple(rows))


def tasks_content(found: AssessedTasks) -> list[dict[str, Any]]:
    """The numbers of every task, the dense model's under `dense`."""
    dense = found.dense or (None,) * len(found.results)
    return [
        one.model_dump() | {"dense": None if before is None else before.model_dump()}
        for one, before in zip(found.results, dense, strict=True)
    ]


def _shots(result: TaskResult) -> str:
    return "–" if result.shots is None else str(result.shots)


def metric_text(metric: TaskMetric) -> str:
    """Value and standard error: "0.4021 ± 0.0358"."""
    return f"{metric.value:.4f}" + (f" ± {metric.error:.4f}" if metric.error is not None else "")
