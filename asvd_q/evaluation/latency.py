"""How long Runners take for a prompt and the tokens after it, measured in turns in one run.

Absolute times are of one machine at one hour. Runners take turns within every round, so that
whatever else the machine does falls on all of them, and are compared round by round.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from asvd_q.artefact import Runner
from asvd_q.errors import AsvdQError
from asvd_q.progress import Progress

__all__ = [
    "Compared",
    "Load",
    "Ratio",
    "Timing",
    "Turn",
    "compare_speed",
    "require_room",
    "time_in_turns",
    "times_as_fast",
]

_REST = 0.05
"""Seconds between two runners: threads of the one before keep a core busy while they wait for
work."""


@dataclass(frozen=True)
class Load:
    """What is measured: every batch size with every length of prompt.

    Attributes:
        batches, prompts: sequences at once, and tokens of each prompt.
        tokens: generated after each prompt, two or more.
        rounds: that count.
    """

    batches: tuple[int, ...] = (1,)
    prompts: tuple[int, ...] = (128,)
    tokens: int = 32
    rounds: int = 5


@dataclass(frozen=True)
class Turn:
    """Seconds of one turn: to the first token of every sequence, and for all tokens after it."""

    first: float
    rest: float

    @property
    def total(self) -> float:
        """Seconds from the prompt to the last token."""
        return self.first + self.rest


@dataclass(frozen=True)
class Timing:
    """One Runner on one batch of prompts.

    Attributes:
        batch, prompt, tokens: sequences, tokens of each prompt, and tokens generated after each.
        turns: of the rounds that count.
    """

    batch: int
    prompt: int
    tokens: int
    turns: tuple[Turn, ...]

    @property
    def first_token_seconds(self) -> float:
        """From the prompts to the first token of every sequence; the median over the rounds."""
        return median(turn.first for turn in self.turns)

    @property
    def total_seconds(self) -> float:
        """For prompts and all tokens; the median over the rounds."""
        return median(turn.total for turn in self.turns)

    @property
    def prefill_tokens_per_second(self) -> float:
        """Of all prompts together."""
        return self.batch * self.prompt / self.first_token_seconds

    @property
    def decode_tokens_per_second(self) -> float:
        """Of all sequences together, their first tokens left out."""
        return self.batch * (self.tokens - 1) / median(turn.rest for turn in self.turns)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast: the median over the rounds, and the least and the most of them."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Compared:
    """A model at one batch size and length of prompt, beside the first model there.

    Attributes:
        name, runtime: of the model.
        first_token, decode, total: how many times as fast as the first model.
    """

    name: str
    runtime: str
    timing: Timing
    first_token: Ratio
    decode: Ratio
    total: Ratio


def compare_speed(
    runners: Mapping[str, Runner],
    prompts: Callable[[int, int], Tensor],
    load: Load,
    progress: Progress,
    *,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[float], None] = time.sleep,
) -> list[Compared]:
    """Time models in turns at every batch size and length of prompt.

    Args:
        prompts: makes int64 (batch, tokens) of these two numbers.
        clock, rest: of a test.

    Returns:
        Batch by batch, prompt by prompt, in the order of the models.
    """
    found: list[Compared] = []
    shapes = [(batch, prompt) for batch in load.batches for prompt in load.prompts]
    for done, shape in enumerate(shapes):
        timings = time_in_turns(
            runners,
            prompts(*shape),
            tokens=load.tokens,
            rounds=load.rounds,
            clock=clock,
            rest=rest,
        )
        first = next(iter(timings.values()))
        found += [
            _compared(name, runners[name].runtime, timing, first)
            for name, timing in timings.items()
        ]
        progress("measuring speed", done + 1, len(shapes))
    return found


def time_in_turns(
    runners: Mapping[str, Runner],
    prompts: Tensor,
    *,
    tokens: int,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[float], None] = time.sleep,
) -> dict[str, Timing]:
    """Let each continue the prompts greedily, token by token, in turns.

    Every round has another order, random and the same in every call: there and back would have the
    ones at both ends follow themselves, with their weights in the processor's caches. One more
    round, which does not count, comes before them. What a Runner does is in the time: logits of
    every position of the prompt among it.

    Args:
        prompts: int64 (batch, tokens), without padding.
        tokens: to generate, two or more.
        rounds: that count.
        clock, rest: of a test.

    Returns:
        By the names of the runners.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in runners}
    names = list(runners)
    order = random.Random(0)
    for number in range(rounds + 1):
        order.shuffle(names)
        for name in names:
            rest(_REST)
            turn = _turn(runners[name], prompts, tokens, clock)
            if number:
                turns[name].append(turn)
    batch, prompt = prompts.shape
    return {name: Timing(batch, prompt, tokens, tuple(found)) for name, found in turns.items()}


def times_as_fast(reference: Timing, other: Timing, part: Callable[[Turn], float]) -> Ratio:
    """Seconds of the one by those of the other, round by round.

    Args:
        part: which seconds of a turn.
    """
    pairs = zip(reference.turns, other.turns, strict=True)
    found = [part(one) / part(another) for one, another in pairs]
    return Ratio(median(found), min(found), max(found))


def _compared(name: str, runtime: str, timing: Timing, first: Timing) -> Compared:
    return Compared(
        name=name,
        runtime=runtime,
        timing=timing,
        first_token=times_as_fast(first, timing, lambda turn: turn.first),
        decode=times_as_fast(first, timing, lambda turn: turn.rest),
        total=times_as_fast(first, timing, lambda turn: turn.total),
    )


def require_room(contexts: Mapping[str, int | None], prompt: int, tokens: int) -> None:
    """Raises AsvdQError when a model's context is too short for a prompt and the tokens after it.

    Args:
        contexts: by the models' names; None for one without a bound.
        prompt: of the longest prompt.
    """
    for name, context in contexts.items():
        if context is not None and prompt + tokens > context:
            raise AsvdQError(
                f"{name} has a context of {context} tokens, and --prompt {prompt} with --tokens "
                f"{tokens} needs {prompt + tokens}: take a shorter prompt or fewer tokens"
            )


def _turn(runner: Runner, prompts: Tensor, tokens: int, clock: Callable[[], float]) -> Turn:
    start = clock()
    logits, cache = runner.forward(prompts)
    token = _likeliest(logits)
    first = clock()
    for _ in range(tokens - 1):
        logits, cache = runner.forward(token, cache)
        token = _likeliest(logits)
    return Turn(first - start, clock() - first)


def _likeliest(logits: Tensor) -> Tensor:
    """The next token of every sequence, int64 (batch, 1)."""
    return torch.argmax(logits[:, -1:], dim=-1)
