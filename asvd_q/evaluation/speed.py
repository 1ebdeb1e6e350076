"""Decode speed of several Runners, measured in turns in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch

from asvd_q.artefact import Runner

__all__ = ["decode_speeds"]


def decode_speeds(
    runners: Mapping[str, Runner], prompt: list[int], *, tokens: int = 64, rounds: int = 5
) -> dict[str, float]:
    """Tokens per second when decoding one sequence token by token.

    The runners take turns within every round, so that whatever else the machine does falls on
    all of them. The first round is a warm-up; of the others the median of the three fastest counts.
    Compare ratios, not absolute numbers.

    Args:
        prompt: token ids that fill the cache first; their time does not count.
        tokens: decoded in each round.
    """
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds + 1):
        for name, runner in runners.items():
            logits, cache = runner.forward(torch.tensor([prompt]))
            token = logits[:, -1:].argmax(-1)
            start = time.perf_counter()
            for _ in range(tokens):
                logits, cache = runner.forward(token, cache)
                token = logits[:, -1:].argmax(-1)
            times[name].append(time.perf_counter() - start)
    return {
        name: tokens / statistics.median(sorted(found[1:])[:3]) for name, found in times.items()
    }
