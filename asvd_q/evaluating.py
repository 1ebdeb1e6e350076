"""Puts the tasks of a recipe to the dense model and to the store."""

from __future__ import annotations

from collections.abc import Sequence

from asvd_q.evaluation.runners import model_runner
from asvd_q.evaluation.tasks.loading import LoadedTask, load_tasks
from asvd_q.evaluation.tasks.record import AssessedTasks, TaskOutcome
from asvd_q.evaluation.tasks.running import compare_tasks, evaluate_tasks
from asvd_q.models.assemble import Replaced
from asvd_q.models.context import context_length
from asvd_q.preparation import Prepared
from asvd_q.progress import Progress
from asvd_q.quantization import TORCH_TYPES
from asvd_q.store import Store

__all__ = ["measure_tasks", "read_tasks"]


def read_tasks(prepared: Prepared) -> list[LoadedTask]:
    """The recipe's tasks with their data, before hours of work.

    Raises:
        MissingExtraError: lm-eval is not installed.
        TaskError: a task that is not to be had.
    """
    section = prepared.recipe.evaluate
    return [] if section is None else load_tasks(section.tasks)


def measure_tasks(
    prepared: Prepared, store: Store, tasks: Sequence[LoadedTask], progress: Progress
) -> AssessedTasks:
    """Results of the dense model (if the recipe wants it) and of the store; one model at a time."""
    section = prepared.recipe.evaluate
    if section is None or not tasks:
        return AssessedTasks(())
    batch_size = section.batch_size

    def measured(replaced: Replaced | None, model: str) -> list[TaskOutcome]:
        runner = model_runner(
            prepared.source,
            replaced,
            device=prepared.device,
            dtype=TORCH_TYPES[prepared.recipe.compute_dtype],
        )
        return evaluate_tasks(
            tasks,
            runner,
            prepared.source.tokenizer,
            context=context_length(prepared.source.config.to_dict()),
            batch_size=batch_size,
            progress=lambda stage, done, total: progress(f"{stage}, {model}", done, total),
        )

    dense = measured(None, "dense") if section.dense else []
    return compare_tasks(dense, measured(store.replaced, "compressed"))
