"""Scores of continuations, from a Runner whose logits are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from asvd_q.errors import TaskError
from asvd_q.evaluation.tasks import scoring
from asvd_q.evaluation.tasks.scoring import score_continuations

_VOCABULARY = 11


class _Sums:
    """The logit of a token is higher the nearer it is to the sum of all before, mod 11."""

    runtime = "none"

    def __init__(self) -> None:
        self.passes: list[list[tuple[int, int]]] = []

    def score(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        found = list(batches)
        self.passes.append([(int(batch.shape[0]), int(batch.shape[1])) for batch in found])
        for batch in found:
            yield self._logits(batch)

    def forward(self, input_ids: Tensor, *_: Any) -> tuple[Tensor, Any]:
        raise NotImplementedError

    @staticmethod
    def _logits(batch: Tensor) -> Tensor:
        likeliest = batch.cumsum(1) % _VOCABULARY
        return -(torch.arange(_VOCABULARY) - likeliest[..., None]).abs().float()


def _expected(context: Sequence[int], tokens: Sequence[int]) -> tuple[float, bool]:
    total, greedy = 0.0, True
    before = list(context)
    for token in tokens:
        logits = _Sums._logits(torch.tensor([before]))[0, -1]
        total += float(logits.log_softmax(-1)[token])
        greedy = greedy and int(logits.argmax()) == token
        before.append(token)
    return total, greedy


REQUESTS = [
    ([1, 2], [3, 6]),
    ([1, 2], [4]),
    ([1, 2], [5]),
    ([1], [2, 4]),
    ([7, 7, 7], [10, 9, 8, 7]),
    ([2, 2], [4, 9]),
]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_each_request_is_scored_as_if_it_were_alone(batch_size: int) -> None:
    runner, seen = _Sums(), []
    found = score_continuations(
        runner,
        REQUESTS,
        context=50,
        batch_size=batch_size,
        advance=lambda done, total: seen.append((done, total)),
    )
    for score, request in zip(found, REQUESTS, strict=True):
        loglikelihood, greedy = _expected(*request)
        assert score.loglikelihood == pytest.approx(loglikelihood, abs=1e-5)
        assert score.greedy == greedy
    assert [score.greedy for score in found][:2] == [True, False]
    assert seen[-1] == (6, 6)
    # Three requests have the input 1, 2: it is computed once.
    assert sum(rows for batches in runner.passes for rows, _ in batches) == 4


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    long = ([5, 4, 3, 2, 1, 1, 2], [3, 6])
    (cut,) = score_continuations(_Sums(), [long], context=4, batch_size=1)
    (short,) = score_continuations(_Sums(), [([1, 1, 2], [3, 6])], context=4, batch_size=1)
    assert cut == short


def test_passes_and_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_PASS_TOKENS", 64)
    monkeypatch.setattr(scoring, "_ROW_TOKENS", 8)
    answers = [[n % 9 for n in range(length)] for length in (2, 8, 20)]
    requests = [([first], answer) for first in range(5) for answer in answers]
    runner = _Sums()
    score_continuations(runner, requests, context=50, batch_size=4)
    shapes = [shape for batches in runner.passes for shape in batches]
    assert max(rows for rows, length in shapes if length == 2) == 4
    assert {rows for rows, length in shapes if length == 20} == {1}
    assert all(sum(rows * length for rows, length in one) <= 64 for one in runner.passes)
    assert len(runner.passes) > 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (([1], []), "no tokens of its own"),
        (([1], [1, 2, 3, 4, 5]), "an answer has 5 tokens and the model takes 4"),
    ],
)
def test_what_cannot_be_scored_is_said(request_: tuple[list[int], list[int]], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        score_continuations(_Sums(), [request_], context=4, batch_size=1)
