"""Runs side by side: what they differ in, what that took and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from asvd_q.errors import RecipeError
from asvd_q.evaluation.assess import Assessed
from asvd_q.evaluation.quality import Quality
from asvd_q.naming import named_path
from asvd_q.report.compare_tasks import TaskScore, task_scores
from asvd_q.report.recipes import flatten, read_recipe
from asvd_q.report.run import RunRecord

__all__ = ["ComparedRun", "Comparison", "TextScore", "compare", "read_runs"]

_OF_THE_PLACE = ("name", "output", "version", "model.path")
"""Keys of a recipe that say nothing of the result: the model is compared by its weights."""


@dataclass(frozen=True)
class TextScore:
    """How well a run's model predicts one text.

    Attributes:
        assessed: its quality, beside that of the run's own dense model on the same tokens.
        sha256: of the text; None where the record does not have it.
        unlike: why it may not be held against the first run that has this text; empty where it
            may.
    """

    assessed: Assessed
    sha256: str | None
    unlike: tuple[str, ...] = ()

    @property
    def quality(self) -> Quality:
        """Of the compressed model."""
        return self.assessed.quality

    @property
    def dense(self) -> float | None:
        """Perplexity of the dense model; None where it was not measured."""
        dense = self.assessed.dense
        return None if dense is None else dense.perplexity


@dataclass(frozen=True)
class ComparedRun:
    """One run under its label.

    Attributes:
        recipe: the resolved one; None where it is gone.
        scores: by (corpus, split), in the order of the record.
        same_model: whether its source has the weights of the first run's.
        tasks: by (task, metric).
    """

    label: str
    record: RunRecord
    recipe: Mapping[str, Any] | None
    scores: Mapping[tuple[str, str], TextScore]
    same_model: bool = True
    tasks: Mapping[tuple[str, str], TaskScore] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Runs in the order in which they were given.

    Attributes:
        differences: key of the recipes, dotted → value of each run; None where it has none.
        notes: what has to be known before numbers are held against each other.
    """

    runs: tuple[ComparedRun, ...]
    differences: Mapping[str, tuple[Any, ...]]
    notes: tuple[str, ...]

    @property
    def texts(self) -> tuple[tuple[str, str], ...]:
        """(corpus, split) of every text that a run was measured on."""
        return tuple(dict.fromkeys(key for run in self.runs for key in run.scores))


def read_runs(arguments: Sequence[str]) -> list[tuple[str, RunRecord, dict[str, Any] | None]]:
    """Label, record and recipe of every run.

    Args:
        arguments: run folders, each by its path or as NAME=PATH. Without a name it is the
            folder's, or the path where two folders have the same.

    Raises:
        RecipeError: fewer than two, or two of one name.
        ArtefactError: a folder that is no finished run.
    """
    if len(arguments) < 2:
        raise RecipeError("compare: give two run folders or more")
    named = [named_path(argument, "compare") for argument in arguments]
    short = [name or path.resolve().name for name, path in named]
    labels = [
        name or (str(path) if short.count(label) > 1 else label)
        for (name, path), label in zip(named, short, strict=True)
    ]
    for label in labels:
        if labels.count(label) > 1:
            raise RecipeError(f"compare: two runs are called {label!r}: name one as NAME=PATH")
    return [
        (label, RunRecord.read(folder), read_recipe(folder))
        for label, (_, folder) in zip(labels, named, strict=True)
    ]


def compare(runs: Sequence[tuple[str, RunRecord, Mapping[str, Any] | None]]) -> Comparison:
    """Runs of any models, recipes and texts; what may not be held against the first is marked.

    Perplexities are comparable where model, text, its hash, protocol, windows and tokens are the
    same.

    Args:
        runs: label, record and resolved recipe of each; one or more.
    """
    first = runs[0][1]
    plain = [
        ComparedRun(label, record, recipe, _scores(record), _weights(record) == _weights(first))
        for label, record, recipe in runs
    ]
    tasks = task_scores([record for _, record, _ in runs])
    compared = tuple(
        replace(_marked(run, plain), tasks=found) for run, found in zip(plain, tasks, strict=True)
    )
    return Comparison(compared, _differences(compared), tuple(_notes(compared)))


def _scores(record: RunRecord) -> dict[tuple[str, str], TextScore]:
    texts = {
        (one.corpus, one.split): one.sha256 for one in record.corpora if one.use == "evaluation"
    }
    return {
        key: TextScore(assessed, texts.get(key))
        for assessed in record.assessed
        for key in [(assessed.quality.corpus, assessed.quality.split)]
    }


def _marked(run: ComparedRun, runs: Sequence[ComparedRun]) -> ComparedRun:
    """The run with what speaks against a comparison, text by text."""
    scores = {}
    for key, score in run.scores.items():
        reference = next(other for other in runs if key in other.scores)
        unlike = tuple(_unlike(run, reference, key))
        scores[key] = replace(score, unlike=unlike)
    return replace(run, scores=scores)


def _unlike(run: ComparedRun, reference: ComparedRun, key: tuple[str, str]) -> Iterator[str]:
    here, there = run.scores[key], reference.scores[key]
    if _weights(run.record) != _weights(reference.record):
        yield "another model, which may cut text into other tokens"
    if here.sha256 != there.sha256:
        yield "another text under the same name"
    ours, theirs = here.quality, there.quality
    if ours.protocol != theirs.protocol:
        yield f"protocol {ours.protocol} and not {theirs.protocol}"
    if (ours.windows, ours.window) != (theirs.windows, theirs.window):
        yield f"{_windows(ours)} and not {_windows(theirs)}"
    elif ours.tokens != theirs.tokens:
        yield f"{ours.tokens} predicted tokens and not {theirs.tokens}"


def _windows(quality: Quality) -> str:
    return f"{quality.windows} windows of {quality.window} tokens"


def _weights(record: RunRecord) -> str:
    return record.source.weights_sha256


def _differences(runs: Sequence[ComparedRun]) -> dict[str, tuple[Any, ...]]:
    """A key that is missing and one that is null or empty are the same: nothing."""
    flat = [
        {
            key: None if value in ([], {}) else value
            for key, value in flatten(run.recipe or {}).items()
        }
        for run in runs
    ]
    keys = dict.fromkeys(key for values in flat for key in values if key not in _OF_THE_PLACE)
    rows = {key: tuple(values.get(key) for values in flat) for key in keys}
    known = [index for index, run in enumerate(runs) if run.recipe is not None]
    return {
        key: row for key, row in rows.items() if any(row[index] != row[known[0]] for index in known)
    }


def _notes(runs: Sequence[ComparedRun]) -> Iterator[str]:
    first = runs[0]
    for run in runs:
        if not run.same_model:
            yield (
                f"{run.label}: its model is {run.record.source.name} with other weights than "
                f"{first.label}'s {first.record.source.name}"
            )
        if run.recipe is None:
            yield f"{run.label}: has no recipe.yaml any more, so its settings are not compared"
        for (corpus, split), score in run.scores.items():
            if score.unlike:
                yield (
                    f"{run.label}: {corpus} ({split}) is not comparable: {'; '.join(score.unlike)}"
                )
        tasks = {task: score.unlike for (task, _), score in run.tasks.items() if score.unlike}
        for task, unlike in tasks.items():
            yield f"{run.label}: {task} is not comparable: {'; '.join(unlike)}"
