"""Times decoders in turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from benchmarks._decode_driver import Decoder, Ids

__all__ = ["Times", "alternate", "ratio"]

_REST = 0.05
"""Seconds between two decoders: threads of the one before keep a core busy while they wait for
work."""

_MOST = 10
"""Times as many rounds as asked for, at most, where there are seconds left."""


@dataclass
class Times:
    """Of one decoder, a value per round.

    Attributes:
        prefill: seconds from the prompt to its next token.
        decode: seconds per step after that.
    """

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)

    @property
    def prefill_seconds(self) -> float:
        return median(self.prefill)

    @property
    def decode_seconds(self) -> float:
        return median(self.decode)


def alternate(
    decoders: Mapping[str, Decoder],
    ids: Ids,
    *,
    tokens: int,
    rounds: int,
    seconds: float = 0,
    seed: int = 0,
) -> dict[str, Times]:
    """Let each take a prompt and decode after it, in turns, in another order in every round.

    The order is random, the same in every run: there and back would have the ones at both ends
    follow themselves in every second round, with their weights still in the processor's caches.

    Args:
        ids: the prompt, (batch, tokens).
        tokens: steps after the prompt's own next token.
        rounds: that count; one more comes before them.
        seconds: more rounds follow until as many have passed.
        seed: of the order.
    """
    found = {name: Times() for name in decoders}
    names = list(decoders)
    order = random.Random(seed)
    start, done = time.monotonic(), 0
    while done <= rounds or (time.monotonic() - start < seconds and done <= _MOST * rounds):
        order.shuffle(names)
        for name in names:
            time.sleep(_REST)
            times = _once(decoders[name], ids, tokens)
            if done:
                found[name].prefill.append(times[0])
                found[name].decode.append(times[1])
        done += 1
    return found


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times faster: the median over rounds of what one took and the other did."""
    return median(one / other for one, other in zip(slow, fast, strict=True))


def _once(decoder: Decoder, ids: Ids, tokens: int) -> tuple[float, float]:
    start = time.perf_counter()
    best = decoder.prefill(ids, tokens)
    middle = time.perf_counter()
    for _ in range(tokens):
        best = decoder.step(best)
    return middle - start, (time.perf_counter() - middle) / tokens
