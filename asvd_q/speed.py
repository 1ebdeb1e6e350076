"""Speed and memory of whatever can be opened.

    python -m asvd_q.speed PATH

is the process that `peak_memory` measures: settings as JSON on its standard input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from asvd_q.artefact import METADATA_FILE, read_metadata
from asvd_q.errors import AsvdQError
from asvd_q.evaluation.latency import Compared, Load, compare_speed, require_room
from asvd_q.evaluation.memory import resident_memory, run_apart
from asvd_q.evaluation.texts import prompt_tokens
from asvd_q.exporter_registry import build_exporter
from asvd_q.opening import Opened, open_anything
from asvd_q.process import limited_threads, settle_process, thread_limit
from asvd_q.progress import Progress

__all__ = ["PeakMemory", "models_speed", "peak_memory"]


@dataclass(frozen=True)
class PeakMemory:
    """Resident memory of a process that opens a model, reads prompts and generates.

    Attributes:
        bytes: at its largest.
        imported_bytes: before the model is opened, packages imported.
    """

    bytes: int
    imported_bytes: int


def models_speed(models: Mapping[str, Opened], load: Load, progress: Progress) -> list[Compared]:
    """Time models in turns, in their runtimes, on the same prompts of built-in prose.

    The first model's tokenizer makes them.

    Raises:
        AsvdQError: a context too short, or a vocabulary that lacks a token of the prompts.
    """
    contexts = {name: model.context for name, model in models.items()}
    require_room(contexts, max(load.prompts), load.tokens)
    name, first = next(iter(models.items()))
    text = prompt_tokens(first.tokenizer, max(load.batches), max(load.prompts)).flatten()
    last = int(text.max())
    for other, model in models.items():
        if len(model.tokenizer) <= last:
            raise AsvdQError(
                f"{other} has a vocabulary of {len(model.tokenizer)} tokens, and prompts in that "
                f"of {name} have token {last}: compare models of one vocabulary"
            )
    runners = {name: model.runner for name, model in models.items()}

    def prompts(batch: int, tokens: int) -> torch.Tensor:
        return text[: batch * tokens].view(batch, tokens)

    return compare_speed(runners, prompts, load, progress)


def peak_memory(
    path: Path, prompts: torch.Tensor, tokens: int, model: str | None = None
) -> PeakMemory:
    """Measure the memory of a model in a process of its own.

    Args:
        path, model: as `open_anything` takes them.
        prompts: int64 (batch, tokens).
        tokens: to generate after each.

    Raises:
        ResourceError: the process fails.
    """
    settings = {
        "model": model,
        "prompts": prompts.tolist(),
        "tokens": tokens,
        "threads": thread_limit(),
    }
    found = run_apart("asvd_q.speed", path, given=json.dumps(settings))
    return PeakMemory(**found)


def _measured(
    path: Path, model: str | None, prompts: list[list[int]], tokens: int, threads: int | None
) -> PeakMemory:
    if (path / METADATA_FILE).is_file():  # brings its runtime
        metadata = read_metadata(path)
        build_exporter(metadata.format, metadata.options)
    before = resident_memory().now
    with limited_threads(threads):
        runner, cache = open_anything(path, model).runner, None
        given = torch.tensor(prompts)
        for _ in range(tokens):
            logits, cache = runner.forward(given, cache)
            given = torch.argmax(logits[:, -1:], dim=-1)
    return PeakMemory(resident_memory().peak, before)


if __name__ == "__main__":
    settle_process()
    print(json.dumps(asdict(_measured(Path(sys.argv[1]), **json.load(sys.stdin)))))  # noqa: T201
