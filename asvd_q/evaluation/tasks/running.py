"""Puts tasks to a Runner."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asvd_q.artefact import Runner
from asvd_q.errors import AsvdQError, TaskError, first_line
from asvd_q.evaluation.tasks.loading import LoadedTask
from asvd_q.evaluation.tasks.record import AssessedTasks, Item, TaskMetric, TaskOutcome, TaskResult
from asvd_q.evaluation.tasks.silence import Silence
from asvd_q.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["assess_tasks", "compare_tasks", "evaluate_tasks"]

_RESAMPLES = 1000
"""For the standard error of a metric that has no formula for it."""

_ERROR = "_stderr"


def evaluate_tasks(
    tasks: Sequence[LoadedTask],
    runner: Runner,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int | None,
    batch_size: int,
    progress: Progress = silent,
) -> list[TaskOutcome]:
    """Put every task to a model.

    Args:
        context: tokens that the model takes; None asks the tokenizer.
        batch_size: rows per forward pass.

    Returns:
        In the order of the tasks: one outcome for each, several for a tag.

    Raises:
        TaskError: a task that cannot be put to the model.
    """
    found: list[TaskOutcome] = []
    for task in tasks:
        found += _outcomes(task, runner, tokenizer, context, batch_size, progress)
    return found


def compare_tasks(dense: Sequence[TaskOutcome], outcomes: Sequence[TaskOutcome]) -> AssessedTasks:
    """Results with the agreement of their answers with the dense model's, task by task.

    Args:
        dense: empty where it was not measured; there is no agreement then.
    """
    if dense:
        outcomes = [found.beside(before) for before, found in zip(dense, outcomes, strict=True)]
    return AssessedTasks(
        tuple(outcome.result for outcome in outcomes), tuple(outcome.result for outcome in dense)
    )


def assess_tasks(
    tasks: Sequence[LoadedTask],
    runner: Runner,
    reference: Runner | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int | None,
    batch_size: int,
    progress: Progress,
) -> AssessedTasks:
    """Put every task to a model, and to the dense one where there is one.

    Args:
        reference: reads the tokens of the same tokenizer; None leaves the comparison out.
        context, batch_size: as in `evaluate_tasks`.
    """

    def measured(one: Runner, suffix: str) -> list[TaskOutcome]:
        return evaluate_tasks(
            tasks,
            one,
            tokenizer,
            context=context,
            batch_size=batch_size,
            progress=lambda stage, done, total: progress(f"{stage}{suffix}", done, total),
        )

    dense = [] if reference is None else measured(reference, ", dense")
    return compare_tasks(dense, measured(runner, ""))


def _outcomes(
    task: LoadedTask,
    runner: Runner,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
    batch_size: int,
    progress: Progress,
) -> Iterator[TaskOutcome]:
    from lm_eval.evaluator import evaluate

    from asvd_q.evaluation.tasks.model import RunnerLM

    def advance(done: int, total: int) -> None:
        progress(f"task {task.section.name}", done, total)

    silence = Silence()
    model = RunnerLM(
        runner,
        tokenizer,
        context=context,
        batch_size=batch_size,
        advance=advance,
        silence=silence,
    )
    task.reset()
    try:
        with silence.kept():
            results = evaluate(
                lm=model,
                task_dict=task.content,
                limit=task.section.limit,
                bootstrap_iters=_RESAMPLES,
                log_samples=True,
            )
    except (AsvdQError, MemoryError, RuntimeError):
        raise
    except Exception as error:  # templates, filters and metrics are the task's own
        raise TaskError(
            f"the task {task.section.task} cannot be put to the model: {first_line(error)}"
        ) from error
    yield from _read(results, task, runner.runtime)


def _read(results: Mapping[str, Any], task: LoadedTask, runtime: str) -> Iterator[TaskOutcome]:
    """lm-eval's results as ours."""
    kinds = {name: one.OUTPUT_TYPE for name, one in task.content["tasks"].items()}
    samples = {name: _first_filter(found) for name, found in results["samples"].items()}
    items = {
        name: tuple(_item(name, kinds[name], sample) for sample in found)
        for name, found in samples.items()
    }

    def result(name: str, members: Sequence[str], parts: tuple[TaskResult, ...]) -> TaskResult:
        return TaskResult(
            task=name,
            version=str(results["versions"].get(name)),
            shots=results["n-shot"].get(name),
            limit=task.section.limit,
            samples=sum(len(items[member]) for member in members),
            sha256=_hash([sample for member in members for sample in samples[member]]),
            metrics=_metrics(
                results["results"].get(name, {}), results["higher_is_better"].get(name, {})
            ),
            runtime=runtime,
            parts=parts,
        )

    singles = [TaskOutcome(result(name, [name], ()), found) for name, found in items.items()]
    if task.group is None:
        yield from singles
        return
    together = tuple(item for found in items.values() for item in found)
    parts = tuple(single.result for single in singles)
    yield TaskOutcome(result(task.group, list(items), parts), together)


def _first_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One entry per sample, where filters make several of an answer."""
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _item(name: str, kind: str, sample: Mapping[str, Any]) -> Item:
    number, found = int(sample["doc_id"]), sample["filtered_resps"]
    if kind == "generate_until":
        return Item(name, number, str(found[0]))
    if kind == "loglikelihood_rolling":
        return Item(name, number, None, (float(found[0]),))
    likelihoods = tuple(float(score) for score, _ in found)
    if kind == "loglikelihood":
        return Item(name, number, bool(found[0][1]), likelihoods)
    if "acc_mutual_info" in sample["metrics"]:  # asks for the options without context too
        likelihoods = likelihoods[: len(likelihoods) // 2]
    return Item(name, number, likelihoods.index(max(likelihoods)), likelihoods)


def _metrics(
    found: Mapping[str, Any], directions: Mapping[str, bool | None]
) -> dict[str, TaskMetric]:
    metrics = {}
    for key, value in found.items():
        name, _, filtered = key.partition(",")
        if not filtered or name.endswith(_ERROR) or not isinstance(value, int | float):
            continue
        error = found.get(f"{name}{_ERROR},{filtered}")
        known = isinstance(error, int | float) and math.isfinite(error)
        metrics[name if filtered == "none" else f"{name} ({filtered})"] = TaskMetric(
            value=float(value),
            error=float(error) if known else None,  # type: ignore[arg-type]
            higher_is_better=directions.get(name),
        )
    return metrics


def _hash(samples: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        for part in ("doc_hash", "prompt_hash", "target_hash"):
            digest.update(str(sample[part]).encode())
    return digest.hexdigest()
