"""How likely continuations are behind their contexts, from any Runner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from asvd_q.artefact import Runner
from asvd_q.errors import TaskError

__all__ = ["Advance", "Score", "score_continuations"]

Advance = Callable[[int, int], None]
"""Called with what is done and what there is to do."""

_ROW_TOKENS = 512
"""A batch has no more tokens than its rows would have at this length: logits are large."""

_PASS_TOKENS = 65536
"""Tokens per call of `Runner.score`: a Runner that streams keeps hidden states of all of them."""


class Score(NamedTuple):
    """Of one continuation.

    Attributes:
        loglikelihood: sum over its tokens, nats.
        greedy: whether every token is the most likely one at its place.
    """

    loglikelihood: float
    greedy: bool


def score_continuations(
    runner: Runner,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    context: int,
    batch_size: int,
    advance: Advance = lambda done, total: None,
) -> list[Score]:
    """Score every continuation behind its context.

    Rows of a batch have one length, so nothing is padded: what a row gives depends on that row
    alone, in every runtime. Requests with the same input are computed once.

    Args:
        requests: token ids of context and continuation, each at least one.
        context: tokens that the model takes; a longer context loses its beginning.
        batch_size: rows per forward pass.
        advance: called with the requests done and their number.

    Raises:
        TaskError: a continuation that is empty or does not fit into the context.
    """
    readers: dict[tuple[int, ...], list[int]] = {}
    for index, (before, tokens) in enumerate(requests):
        if not before or not tokens:
            raise TaskError(
                "an answer has no tokens of its own behind its context: begin it with a space, or "
                "set target_delimiter in the task file"
            )
        if len(tokens) > context:
            raise TaskError(
                f"an answer has {len(tokens)} tokens and the model takes {context}: leave the "
                "task out"
            )
        readers.setdefault((*before, *tokens)[-context - 1 :][:-1], []).append(index)
    scores: list[Score | None] = [None] * len(requests)
    done = 0
    for batches in _passes(list(readers), batch_size):
        tensors = [torch.tensor(batch) for batch in batches]
        for batch, logits in zip(batches, runner.score(tensors), strict=True):
            for row, found in zip(batch, logits, strict=True):
                for index in readers[row]:
                    scores[index] = _score(found, requests[index][1])
                done += len(readers[row])
            advance(done, len(requests))
    return [score for score in scores if score is not None]


def _passes(rows: list[tuple[int, ...]], batch_size: int) -> Iterator[list[list[tuple[int, ...]]]]:
    """Batches of rows of one length, the longest first, as many as one pass takes."""
    batches: list[list[tuple[int, ...]]] = []
    tokens = 0
    rows = sorted(rows, key=lambda row: (-len(row), row))
    for length, group in groupby(rows, key=len):
        equal = list(group)
        size = max(1, min(batch_size, batch_size * _ROW_TOKENS // length))
        for start in range(0, len(equal), size):
            batch = equal[start : start + size]
            if batches and tokens + length * len(batch) > _PASS_TOKENS:
                yield batches
                batches, tokens = [], 0
            batches.append(batch)
            tokens += length * len(batch)
    if batches:
        yield batches


def _score(logits: Tensor, tokens: Sequence[int]) -> Score:
    """Of the last tokens of a row, from its logits (tokens, vocabulary)."""
    expected = torch.tensor(tokens)
    last = logits[-len(tokens) :].double()
    chosen = last.log_softmax(-1).gather(-1, expected[:, None])
    return Score(float(chosen.sum()), bool((last.argmax(-1) == expected).all()))
