"""The windows are those of the published protocol, token for token."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from asvd_q.errors import CorpusError
from asvd_q.statistics.corpora import Corpus
from asvd_q.statistics.windows import (
    calibration_windows,
    evaluation_windows,
    running_windows,
    samples_per_corpus,
    tokenize,
)
from tests.support import WREN


class Numbers:
    """A tokenizer for texts of numbers; it starts a text with BOS when it is told to."""

    bos_token_id: int | None = 7

    def __init__(self, *, adds_bos: bool = False) -> None:
        self.adds_bos = adds_bos

    def __call__(
        self, text: str, add_special_tokens: bool = True, verbose: bool = True
    ) -> dict[str, list[int]]:
        ids = [int(word) if word.isdecimal() else 9 for word in text.split()]
        first = [7] if self.adds_bos and add_special_tokens else []
        return {"input_ids": first + ids}


def corpus(tokens: int, start: int = 1000, name: str = "numbers") -> Corpus:
    text = " ".join(str(start + index) for index in range(tokens))
    return Corpus(name=name, split="train", text=text, sha256="")


def calibrate(corpora: list[tuple[Corpus, float]], tokenizer: Any = None, **settings: Any) -> Any:
    settings = {"samples": 4, "window": 8, "seed": 233} | settings
    return calibration_windows(corpora, tokenizer or Numbers(), **settings)


def test_offsets_are_those_of_the_reference() -> None:
    ids = list(range(1000, 1100))
    random.seed(233)
    expected = []
    for _ in range(4):
        offset = random.randint(0, len(ids) - 8 - 1)
        expected.append(ids[offset : offset + 8])
    windows = calibrate([(corpus(100), 1.0)])
    assert windows.dtype == torch.int64
    assert windows.tolist() == expected


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    random.seed(1)
    state = random.getstate()
    first = calibrate([(corpus(100), 1.0)])
    assert random.getstate() == state
    random.seed(2)
    assert torch.equal(first, calibrate([(corpus(100), 1.0)]))
    assert not torch.equal(first, calibrate([(corpus(100), 1.0)], seed=234))


def test_a_mixture_keeps_the_order_and_the_weights() -> None:
    windows = calibrate([(corpus(50), 1.0), (corpus(50, start=5000), 3.0)], samples=8)
    assert windows.shape == (8, 8)
    assert [bool(row[0] >= 5000) for row in windows] == [False] * 2 + [True] * 6


@pytest.mark.parametrize(
    ("weights", "samples", "shares"),
    [
        ([1.0], 5, [5]),
        ([1.0, 1.0], 32, [16, 16]),
        ([1.0, 1.0], 5, [3, 2]),
        ([1.0, 1.0, 1.0], 32, [11, 11, 10]),
        ([2.0, 1.0], 8, [5, 3]),
        ([0.1, 0.2, 0.7], 10, [1, 2, 7]),
    ],
)
def test_shares(weights: list[float], samples: int, shares: list[int]) -> None:
    assert samples_per_corpus([(corpus(1), weight) for weight in weights], samples) == shares


def test_a_corpus_without_a_share_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"small gets none of 8 calibration windows at weight"):
        samples_per_corpus([(corpus(1), 100.0), (corpus(1, name="small"), 0.1)], 8)


def test_evaluation_windows_are_consecutive_from_the_start() -> None:
    windows = evaluation_windows(corpus(35), Numbers(), window=8)
    assert windows.flatten().tolist() == list(range(1000, 1032))
    assert windows.shape == (4, 8)
    few = evaluation_windows(corpus(35), Numbers(), window=8, windows=3)
    assert torch.equal(few, windows[:3])
    many = evaluation_windows(corpus(35), Numbers(), window=8, windows=9)
    assert torch.equal(many, windows)


@pytest.mark.parametrize(
    ("adds_bos", "bos", "expected"),
    [
        (False, "auto", False),
        (True, "auto", True),
        (False, True, True),
        (True, False, False),
    ],
)
def test_bos_takes_the_first_place(adds_bos: bool, bos: Any, expected: bool) -> None:
    tokenizer: Any = Numbers(adds_bos=adds_bos)
    plain = evaluation_windows(corpus(32), Numbers(), window=8, bos=False)
    windows = evaluation_windows(corpus(32), tokenizer, window=8, bos=bos)
    assert windows.shape == plain.shape
    assert torch.equal(windows[:, 1:], plain[:, 1:])
    assert bool((windows[:, 0] == 7).all()) is expected
    calibrated = calibrate([(corpus(32), 1.0)], tokenizer, bos=bos)
    assert bool((calibrated[:, 0] == 7).all()) is expected


@pytest.mark.parametrize(
    ("adds_bos", "bos", "expected"),
    [
        (False, "auto", False),
        (True, "auto", True),
        (False, True, True),
        (True, False, False),
    ],
)
def test_running_windows_have_bos_once(adds_bos: bool, bos: Any, expected: bool) -> None:
    tokenizer: Any = Numbers(adds_bos=adds_bos)
    windows = running_windows(corpus(35), tokenizer, window=8, bos=bos)
    text = [*([7] if expected else []), *range(1000, 1035)]
    assert windows.shape == (4, 8)
    assert windows.flatten().tolist() == text[:32]
    few = running_windows(corpus(35), tokenizer, window=8, windows=3, bos=bos)
    assert torch.equal(few, windows[:3])
    with pytest.raises(CorpusError, match="a window of 64 needs at least 64"):
        running_windows(corpus(35), tokenizer, window=64, bos=bos)


def test_bos_from_a_tokenizer_without_one() -> None:
    tokenizer: Any = Numbers()
    tokenizer.bos_token_id = None
    with pytest.raises(CorpusError, match="the tokenizer has no BOS token"):
        evaluation_windows(corpus(32), tokenizer, window=8, bos=True)
    assert len(evaluation_windows(corpus(32), tokenizer, window=8)) == 4


def test_corpora_shorter_than_a_window() -> None:
    with pytest.raises(CorpusError, match=r"numbers \(train\) has 7 tokens and a window of 8"):
        evaluation_windows(corpus(7), Numbers(), window=8)
    assert len(evaluation_windows(corpus(8), Numbers(), window=8)) == 1
    with pytest.raises(CorpusError, match=r"numbers \(train\) has 8 tokens .* needs at least 9"):
        calibrate([(corpus(8), 1.0)])
    assert calibrate([(corpus(9), 1.0)]).tolist() == [list(range(1000, 1008))] * 4


def test_a_real_tokenizer(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WREN)
    text = "import os\n\nprint(os.getcwd())\n" * 500
    with caplog.at_level(logging.WARNING):
        ids = tokenize(Corpus("code", "test", text, ""), tokenizer)
    assert not caplog.records
    assert ids.ndim == 1
    assert len(ids) > tokenizer.model_max_length
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.decode(ids.tolist()) == text
