"""What is said of accuracy on tasks."""

from __future__ import annotations

from typing import Any

from benchmarks.page.grid import grid
from benchmarks.page.result import Results

__all__ = ["tasks_finding", "tasks_table"]

Row = dict[str, Any]

_NAMES = {
    "store": "compressed, torch",
    "level-0": "compressed, ONNX Runtime, level 0",
    "level-4": "compressed, ONNX Runtime, level 4",
}


def tasks_table(results: Results, name: str) -> str:
    """Every model at every task."""
    rows: list[Row] = results[name].numbers["rows"]
    return grid(
        ("task", "model", "samples", "score", "same answers as dense", "as the store"),
        (
            (
                row["result"]["task"],
                _NAMES.get(row["model"], row["model"]),
                str(row["result"]["samples"]),
                ", ".join(
                    f"{metric} {found['value']:.3f}"
                    + (f" ± {found['error']:.3f}" if found.get("error") else "")
                    for metric, found in row["result"]["metrics"].items()
                ),
                "–" if row["same_as_dense"] is None else f"{100 * row['same_as_dense']:.1f} %",
                "–" if row["same_as_store"] is None else str(row["same_as_store"]),
            )
            for row in rows
        ),
    )


def tasks_finding(results: Results, name: str) -> str:
    """Task by task, what an artefact answers as its store does."""
    rows: list[Row] = results[name].numbers["rows"]
    sentences = []
    for task in dict.fromkeys(row["result"]["task"] for row in rows):
        equal = [
            f"{row['same_as_store']} of {row['result']['samples']} at {_level(row)}"
            for row in rows
            if row["result"]["task"] == task and row["same_as_store"] is not None
        ]
        scores = [
            f"{next(iter(row['result']['metrics'].values()))['value']:.3f} {words}"
            for model, words in (("dense", "dense"), ("store", "compressed"))
            for row in rows
            if row["result"]["task"] == task and row["model"] == model
        ]
        sentences.append(
            f"{task}: {', '.join(scores)}; artefacts answer as their store {', '.join(equal)}."
        )
    return " ".join(sentences)


def _level(row: Row) -> str:
    name: str = row["model"]
    return name.replace("-", " ")
