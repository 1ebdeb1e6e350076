"""How much memory a model takes while it decodes, in a process of its own.

    python -m benchmarks._decode_memory FOLDER THREADS FACTS|torch TOKENS

prints, in bytes, the largest resident set over loading, a prompt of so many tokens and 16 after
it, less what was resident when all was imported. Facts of the graph are given as JSON: to read
them here would count what reading takes.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from asvd_q.evaluation.memory import resident_memory, run_apart
from benchmarks._decode_driver import Decoder, GraphFacts, OrtDecoder, greedy, prompt

if TYPE_CHECKING:
    from benchmarks._decode_artefacts import Artefact

__all__ = ["PROMPT", "peak_memory_bytes"]

PROMPT, _TOKENS = 128, 16

_PROCESSES = 3
"""An odd number, whose median is one that was measured."""


def peak_memory_bytes(artefact: Artefact, threads: int, tokens: int) -> int:
    """Of an artefact in ONNX Runtime or torch, over a prompt of so many tokens.

    The median of some processes, one after the other. Weights are mapped, and how much of a file
    is resident when a few rows of it are read depends on what the kernel holds of it already: after
    a file was written or copied the whole embedding, half of everything. So each process finds the
    files outside the page cache, where that can be asked for. Single processes of one graph then
    differ by 0.6 to 0.9 percent.

    Raises:
        ResourceError: with the last line of what the process said.
    """
    facts = "torch" if artefact.facts is None else json.dumps(asdict(artefact.facts))
    module = "benchmarks._decode_memory"
    found = []
    for _ in range(_PROCESSES):
        _leave_page_cache(artefact.folder)
        found.append(int(run_apart(module, artefact.folder, threads, facts, tokens)))
    return int(median(found))


def _leave_page_cache(folder: Path) -> None:
    if not hasattr(os, "posix_fadvise"):  # not on every system
        return
    for path in filter(Path.is_file, folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not on disk yet stays
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _measured(folder: Path, threads: int, facts: str, tokens: int) -> int:
    decoder: Decoder
    if facts == "torch":
        from transformers import AutoModelForCausalLM

        from benchmarks._decode_torch import TorchDecoder

        AutoModelForCausalLM  # noqa: B018
        before = resident_memory().now
        decoder = TorchDecoder(folder, threads=threads)
    else:
        parsed = GraphFacts(**json.loads(facts))
        before = resident_memory().now
        decoder = OrtDecoder(folder / "model.onnx", facts=parsed, threads=threads)
    greedy(decoder, prompt(decoder.vocabulary, 1, tokens), _TOKENS)
    return resident_memory().peak - before


if __name__ == "__main__":
    print(_measured(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
