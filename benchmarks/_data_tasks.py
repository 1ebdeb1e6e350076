"""Task files for data that lie in a folder, in the prompts that lm-eval's tasks of the names have.

    mmlu/SUBJECT_test.csv     question, A, B, C, D, answer (0 to 3), with a header
    arc_easy.jsonl            query, choices, gold
    piqa.jsonl                query, choices, gold
    lambada_openai.jsonl      context, continuation

A row of MMLU with quotes that nobody doubled has more fields than six and is left out. Questions of
ARC and PIQA are in the data with all that stands before "Answer:".
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import yaml

__all__ = ["write_data_tasks"]

_Records = Iterable[Mapping[str, Any]]

_ACCURACY = [
    {"metric": metric, "aggregation": "mean", "higher_is_better": True}
    for metric in ("acc", "acc_norm")
]


def write_data_tasks(data: Path, folder: Path) -> list[Path]:
    """A task file in `folder` for everything of the above that `data` has."""
    made = []
    for name, (where, read, fields) in _TASKS.items():
        if not (data / where).exists():
            continue
        lines = [json.dumps(record) + "\n" for record in read(data / where)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        content = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
            "test_split": "test",
            "metadata": {"version": 1.0},
            **fields,
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        made.append(path)
    return made


def _lines(path: Path) -> _Records:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield json.loads(line)


def _queries(path: Path) -> _Records:
    for record in _lines(path):
        prompt = f"{record['query'].rstrip()}\nAnswer:"
        yield {"prompt": prompt, "choices": record["choices"], "answer": record["gold"]}


def _subjects(folder: Path) -> _Records:
    """Questions of all subjects in turns, so that the first ones are of every subject."""
    subjects = [_subject(path) for path in sorted(folder.glob("*_test.csv"))]
    return (record for record in chain(*zip_longest(*subjects)) if record is not None)


def _subject(path: Path) -> _Records:
    subject = path.stem.removesuffix("_test").replace("_", " ")
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if None in row or row["answer"] not in ("0", "1", "2", "3"):
                continue
            options = "".join(f"{letter}. {row[letter]}\n" for letter in "ABCD")
            yield {
                "prompt": "The following are multiple choice questions (with answers) about "
                f"{subject}.\n\n{row['question'].strip()}\n{options}Answer:",
                "choices": list("ABCD"),
                "answer": int(row["answer"]),
            }


_CHOICE: Mapping[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
}

_TASKS: Mapping[str, tuple[str, Callable[[Path], _Records], Mapping[str, Any]]] = {
    "mmlu": ("mmlu", _subjects, {**_CHOICE, "metric_list": _ACCURACY[:1]}),
    "arc_easy": ("arc_easy.jsonl", _queries, {**_CHOICE, "metric_list": _ACCURACY}),
    "piqa": ("piqa.jsonl", _queries, {**_CHOICE, "metric_list": _ACCURACY}),
    "lambada_openai": (
        "lambada_openai.jsonl",
        _lines,
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{context}}",
            "doc_to_target": "{{' ' + continuation}}",
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            ],
        },
    ),
}
"""Name → where its data lie, what reads them, and what lm-eval makes of them."""
