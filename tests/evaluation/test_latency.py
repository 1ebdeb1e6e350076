"""Turns, medians and ratios, by a clock of the test's own."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from asvd_q.errors import AsvdQError
from asvd_q.evaluation.latency import (
    Load,
    Timing,
    Turn,
    compare_speed,
    require_room,
    time_in_turns,
    times_as_fast,
)
from asvd_q.progress import silent

VOCABULARY = 10


class World:
    """A clock that runners move, and what they were asked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, list[list[int]], Any]] = []
        self.rests = 0

    def clock(self) -> float:
        return self.now

    def rest(self, seconds: float) -> None:
        assert seconds > 0
        self.rests += 1
        self.now += 100  # no part of a turn


class Counting:
    """Answers every token with the next number; a prompt takes `prefill`, a step `step` seconds.

    What it takes grows by as much again with every sequence.
    """

    runtime = "counting"

    def __init__(self, world: World, name: str, prefill: float, step: float) -> None:
        self.world, self.name, self.prefill, self.step = world, name, prefill, step
        self.sequences = 0

    def forward(
        self, input_ids: Tensor, cache: Any = None, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        self.world.calls.append((self.name, input_ids.tolist(), cache))
        self.sequences += cache is None
        self.world.now += self.sequences * (self.prefill if cache is None else self.step)
        logits = torch.nn.functional.one_hot((input_ids + 1) % VOCABULARY, VOCABULARY)
        return logits.float(), (cache or 0) + input_ids.shape[1]


def pair(world: World) -> dict[str, Counting]:
    return {"slow": Counting(world, "slow", 8.0, 2.0), "fast": Counting(world, "fast", 4.0, 0.5)}


def timed(world: World, runners: dict[str, Counting], **settings: Any) -> dict[str, Timing]:
    prompts = torch.tensor([[1, 2, 3], [4, 5, 6]])
    return time_in_turns(runners, prompts, clock=world.clock, rest=world.rest, **settings)


def test_runners_take_turns_and_the_first_round_does_not_count() -> None:
    world = World()
    found = timed(world, pair(world), tokens=3, rounds=2)
    turns = [name for name, _, cache in world.calls if cache is None]
    assert [set(turns[start : start + 2]) for start in (0, 2, 4)] == [{"slow", "fast"}] * 3
    assert world.rests == 6
    # The second and third sequence: twice and three times the seconds of the first.
    assert found["slow"].turns == (Turn(16.0, 8.0), Turn(24.0, 12.0))
    assert found["fast"].turns == (Turn(8.0, 2.0), Turn(12.0, 3.0))


def test_no_runner_has_a_place_of_its_own() -> None:
    """The first and the last of a fixed order would follow themselves in the next round."""
    world, names = World(), "abcd"
    timed(world, {name: Counting(world, name, 1.0, 1.0) for name in names}, tokens=2, rounds=63)
    turns = [name for name, _, cache in world.calls if cache is None]
    firsts, again = turns[::4], [one for one, next_one in pairwise(turns) if one == next_one]
    for name in names:
        assert 8 <= firsts.count(name) <= 32
        assert again.count(name) <= 16


def test_tokens_follow_each_other_through_the_cache() -> None:
    world = World()
    timed(world, {"one": Counting(world, "one", 1.0, 1.0)}, tokens=3, rounds=1)
    once = [("one", [[1, 2, 3], [4, 5, 6]], None), ("one", [[4], [7]], 3), ("one", [[5], [8]], 4)]
    assert world.calls == once * 2


def test_what_a_timing_comes_to() -> None:
    timing = Timing(2, 3, 5, (Turn(1.0, 4.0), Turn(3.0, 2.0), Turn(2.0, 8.0)))
    assert timing.first_token_seconds == 2
    assert timing.total_seconds == 5
    assert timing.prefill_tokens_per_second == 2 * 3 / 2
    assert timing.decode_tokens_per_second == 2 * 4 / 4


def test_ratios_are_of_rounds_not_of_medians() -> None:
    one = Timing(1, 1, 2, (Turn(1.0, 1.0), Turn(10.0, 1.0), Turn(100.0, 1.0)))
    other = Timing(1, 1, 2, (Turn(2.0, 1.0), Turn(5.0, 1.0), Turn(400.0, 1.0)))
    ratio = times_as_fast(one, other, lambda turn: turn.first)
    assert (ratio.median, ratio.low, ratio.high) == (0.5, 0.25, 2.0)


def test_every_shape_is_compared_with_the_first_model() -> None:
    world = World()
    shapes: list[tuple[int, int]] = []

    def prompts(batch: int, tokens: int) -> Tensor:
        shapes.append((batch, tokens))
        return torch.zeros((batch, tokens), dtype=torch.int64)

    load = Load(batches=(1, 2), prompts=(3, 4), tokens=2, rounds=1)
    found = compare_speed(pair(world), prompts, load, silent, clock=world.clock, rest=world.rest)
    assert shapes == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert [(one.name, one.timing.batch, one.timing.prompt) for one in found] == [
        (name, *shape) for shape in shapes for name in ("slow", "fast")
    ]
    for slow, fast in zip(found[::2], found[1::2], strict=True):
        assert slow.total.median == slow.decode.median == 1
        assert (fast.first_token.median, fast.decode.median) == (2, 4)
        assert fast.total.median == (8 + 2) / (4 + 0.5)
        assert fast.runtime == "counting"


def test_a_context_too_short() -> None:
    require_room({"free": None, "exact": 40}, 32, 8)
    with pytest.raises(AsvdQError, match=r"short has a context of 39 tokens, .* needs 40"):
        require_room({"free": None, "short": 39}, 32, 8)
