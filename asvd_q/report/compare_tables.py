"""A comparison as tables, as Markdown and as plain values. Rows are quantities, columns runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from asvd_q.report.compare import ComparedRun, Comparison, TextScore
from asvd_q.report.markdown import markdown_table
from asvd_q.report.tables import Table, size
from asvd_q.report.tasks import metric_text

__all__ = ["comparison_content", "comparison_markdown", "comparison_tables"]

_MARK = " *"
_NONE = "–"
_LONG = 40
"""Characters of a value that a table still shows whole."""


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Sizes and cost, quality, and what the recipes differ in; empty ones are left out."""
    labels = ("", *(run.label for run in comparison.runs))
    texts = _legend(score.unlike for run in comparison.runs for score in run.scores.values())
    tasks = _legend(score.unlike for run in comparison.runs for score in run.tasks.values())
    parts = {
        "Runs": _sizes(comparison),
        f"Quality{texts}": _texts(comparison),
        f"Tasks{tasks}": _tasks(comparison),
        "What the recipes differ in": _recipes(comparison),
    }
    found = {title: tuple(rows) for title, rows in parts.items()}
    return [Table(title, labels, rows) for title, rows in found.items() if rows]


def comparison_markdown(comparison: Comparison) -> str:
    """The tables with their titles as headings, and the notes as a list."""
    parts = [
        f"## {table.title}\n\n{markdown_table(table)}" for table in comparison_tables(comparison)
    ]
    if comparison.notes:
        parts.append("\n".join(f"- {note}" for note in comparison.notes))
    return "\n\n".join(parts) + "\n"


def comparison_content(comparison: Comparison) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "runs": [_content(run) for run in comparison.runs],
        "recipe_differences": {
            key: dict(zip((run.label for run in comparison.runs), values, strict=True))
            for key, values in comparison.differences.items()
        },
        "notes": list(comparison.notes),
    }


def _legend(unlike: Iterable[tuple[str, ...]]) -> str:
    return ", * not comparable with the first run that has it" if any(unlike) else ""


def _sizes(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    def row(name: str, of: Callable[[ComparedRun], str]) -> tuple[str, ...]:
        return (name, *(of(run) for run in comparison.runs))

    yield row("model", lambda run: run.record.source.name + ("" if run.same_model else _MARK))
    yield row("parameters kept", lambda run: f"{run.record.parameters.ratio:.4f}")
    yield row("bits per weight", lambda run: f"{run.record.bits_per_weight:.3f}")
    yield row("layers", lambda run: size(run.record.layer_bytes.after))
    yield row("whole model", lambda run: size(run.record.total_bytes.after))
    yield row("dense model", lambda run: size(run.record.total_bytes.before))
    sizes = [{one.name: one.bytes for one in run.record.artefacts} for run in comparison.runs]
    for name in dict.fromkeys(name for found in sizes for name in found):
        cells = (size(found[name]) if name in found else _NONE for found in sizes)
        yield (f"artefact {name}", *cells)
    yield row("seconds", lambda run: f"{_seconds(run):.1f}")
    yield row("peak memory", lambda run: size(_peak(run)))
    yield row("warnings", lambda run: str(len(run.record.warnings)))


def _texts(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    shown: dict[str, Callable[[TextScore], str | None]] = {
        "windows": lambda score: f"{score.quality.windows} × {score.quality.window}",
        "dense": lambda score: _format(score.dense, ".3f"),
        "compressed": lambda score: f"{score.quality.perplexity:.3f}",
        "change": lambda score: _format(score.assessed.change, "+.2%"),
        "KL": lambda score: _format(score.quality.kl, ".4f"),
        "same arg max": lambda score: _format(score.quality.agreement, ".2%"),
    }
    for corpus, split in comparison.texts:
        for name, show in shown.items():
            cells = []
            for run in comparison.runs:
                score = run.scores.get((corpus, split))
                text = None if score is None else show(score)
                marked = text is not None and score is not None and score.unlike
                cells.append((text or _NONE) + (_MARK if marked else ""))
            yield (f"{corpus} ({split}) {name}", *cells)


def _tasks(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    for task, metric in dict.fromkeys(key for run in comparison.runs for key in run.tasks):
        scores = [run.tasks.get((task, metric)) for run in comparison.runs]
        marks = ["" if score is None or not score.unlike else _MARK for score in scores]
        values = [_NONE if score is None else metric_text(score.value) for score in scores]
        dense = [
            _NONE if score is None or score.dense is None else metric_text(score.dense)
            for score in scores
        ]
        for word, cells in (("dense", dense), ("compressed", values)):
            yield (
                f"{task} {metric} {word}",
                *(cell + mark for cell, mark in zip(cells, marks, strict=True)),
            )


def _recipes(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    for key, values in comparison.differences.items():
        yield (key, *(_value(value) for value in values))


def _value(value: Any) -> str:
    if value is None:
        return _NONE
    if isinstance(value, str):
        return value
    text = json.dumps(value, sort_keys=True)
    if len(text) <= _LONG:
        return text
    # Enough to see that two differ; the JSON has them whole.
    return f"{len(value)} entries, {hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _content(run: ComparedRun) -> dict[str, Any]:
    record = run.record
    return {
        "label": run.label,
        "name": record.name,
        "source": record.source.model_dump(mode="json"),
        "same_model": run.same_model,
        "kept_ratio": record.parameters.ratio,
        "bits_per_weight": record.bits_per_weight,
        "layer_bytes": record.layer_bytes.after,
        "total_bytes": record.total_bytes.after,
        "dense_bytes": record.total_bytes.before,
        "artefacts": {
            one.name: {
                "format": one.format,
                "bytes": one.bytes,
                "weight_bytes": one.weight_bytes,
                "proof": one.proof.status,
            }
            for one in record.artefacts
        },
        "quality": [
            {
                **score.quality.model_dump(mode="json"),
                "sha256": score.sha256,
                "dense_perplexity": score.dense,
                "change": score.assessed.change,
                "comparable": not score.unlike,
                "why_not": list(score.unlike),
            }
            for score in run.scores.values()
        ],
        "tasks": [
            {
                "task": task,
                "metric": metric,
                **score.value.model_dump(mode="json"),
                "shots": score.result.shots,
                "samples": score.result.samples,
                "sha256": score.result.sha256,
                "dense": None if score.dense is None else score.dense.value,
                "same_answer": score.result.agreement,
                "comparable": not score.unlike,
                "why_not": list(score.unlike),
            }
            for (task, metric), score in run.tasks.items()
        ],
        "seconds": _seconds(run),
        "peak_memory_bytes": _peak(run),
        "warnings": list(record.warnings),
    }


def _seconds(run: ComparedRun) -> float:
    """Of the stages; of a run that was gone on with, those of the last part."""
    return sum(stage.seconds for stage in run.record.stages)


def _peak(run: ComparedRun) -> int:
    return max((stage.peak_memory_bytes for stage in run.record.stages), default=0)


def _format(value: float | None, spec: str) -> str | None:
    return None if value is None else format(value, spec)
