"""Task files with what is hard about them: empty and long contexts, spaces, shared beginnings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from asvd_q.models import SourceModel
from tests.support import WREN

__all__ = ["CONTEXT", "QUESTIONS", "wren", "write_task"]

CONTEXT = 64
"""Tokens that the model is said to take, so that long texts are cheap."""

_LONG = " ".join((WREN / "README.md").read_text(encoding="utf-8").split()[:60])
"""More tokens than that."""

QUESTIONS: list[dict[str, Any]] = [
    {"text": "The list method append", "choices": ["adds an item", "is a cake"], "answer": 0},
    {"text": "", "choices": ["The string", "Every", "in"], "answer": 1},
    {"text": "A tuple is ", "choices": ["immutable.", "a tuple.", "a"], "answer": 0},
    {"text": "Raised when an in", "choices": ["dex is off", "dex is out of", "k"], "answer": 1},
    {"text": _LONG, "choices": ["the end", "the end of the line"], "answer": 0},
    {"text": "Return True if", "choices": ["a", "b", "c", "d"], "answer": 2},
]
"""Documents of all the task files; `data.jsonl` holds them."""

_KINDS: Mapping[str, Mapping[str, Any]] = {
    "multiple_choice": {
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("acc", "acc_norm")
        ],
    },
    "loglikelihood": {
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{choices[0]}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "loglikelihood_rolling": {
        "doc_to_text": "",
        "doc_to_target": "{{text}} {{choices[0]}}",
        "metric_list": [
            {
                "metric": "word_perplexity",
                "aggregation": "weighted_perplexity",
                "higher_is_better": False,
            }
        ],
    },
    "generate_until": {
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": [".", "\n\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


def write_task(folder: Path, kind: str = "multiple_choice", **changed: Any) -> Path:
    """A task file of a kind, with its data beside it; its name is the kind's."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(question) + "\n" for question in QUESTIONS)
    (folder / "data.jsonl").write_text(lines, encoding="utf-8")
    fields = {
        "task": kind,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "data.jsonl"}},
        "test_split": "test",
        "output_type": kind,
        "target_delimiter": "",  # so that an answer's first token may reach into its context
        **_KINDS[kind],
        **changed,
    }
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


def wren() -> SourceModel:
    """The bundled model."""
    return SourceModel.open(str(WREN))
