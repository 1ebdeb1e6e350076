"""Text sampled from the model: against sampling without a cache, and what is kept of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import Tensor, nn

from asvd_q.errors import CorpusError, ResourceError
from asvd_q.models import SourceModel
from asvd_q.models.skeleton import build_skeleton
from asvd_q.statistics import generated
from asvd_q.statistics.corpora import Corpus
from asvd_q.statistics.generated import GeneratedText, sample_tokens
from asvd_q.statistics.windows import calibration_windows
from tests.models.families import FAMILIES, plain_model, save_family
from tests.support import WREN

BOS = 0
"""Of wren, whose tokenizer does not put it first by itself."""


@pytest.fixture(scope="module")
def wren() -> SourceModel:
    return SourceModel.open(str(WREN))


def text(
    source: SourceModel, folder: Path | None = None, *, known_only: bool = False
) -> GeneratedText:
    return GeneratedText(
        source,
        build_skeleton(source),
        seed=7,
        device="cpu",
        dtype=torch.float32,
        folder=folder,
        known_only=known_only,
    )


@torch.no_grad()
def sampled_plainly(model: nn.Module, starts: Tensor, numbers: Tensor) -> Tensor:
    """The first token whose cumulated probability passes the number; the whole prefix each time."""
    tokens = starts[:, None]
    for position in range(numbers.shape[1]):
        shares = model(tokens, use_cache=False).logits[:, -1].double().softmax(-1)
        passed = shares.cumsum(-1) > numbers[:, position, None]
        tokens = torch.cat([tokens, passed.float().argmax(-1, keepdim=True)], 1)
    return tokens[:, 1:]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_sampling_without_a_cache(family: str, tmp_path: Path) -> None:
    model = plain_model(save_family(family, tmp_path / "model"))
    starts = torch.tensor([3, 9, 30])
    found = sample_tokens(model, starts, 12, torch.Generator().manual_seed(1))
    numbers = torch.rand(3, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(found, sampled_plainly(model, starts, numbers))


def test_tokens_follow_the_distribution_of_the_model(tmp_path: Path) -> None:
    model = plain_model(save_family("llama", tmp_path / "model"))
    count = 4000
    starts = torch.full((count,), 5)
    drawn = sample_tokens(model, starts, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(starts[:1, None]).logits[0, -1].double().softmax(-1) * count
    seen = torch.bincount(drawn.flatten(), minlength=len(expected)).double()
    chi_square = ((seen - expected).square() / expected).sum()
    # Mean and standard deviation of χ² with n degrees of freedom are n and √(2 n).
    freedom = len(expected) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_a_cache_too_large_is_filled_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plain_model(save_family("llama", tmp_path / "model"))
    starts = torch.arange(5)
    whole = sample_tokens(model, starts, 6, torch.Generator().manual_seed(1))
    monkeypatch.setattr(generated, "_CACHE_BYTES", 1)
    seen: list[int] = []
    turns = sample_tokens(model, starts, 6, torch.Generator().manual_seed(1), progress=seen.append)
    assert torch.equal(turns, whole)
    assert seen == sorted(seen)
    assert seen[-1] == 6
    assert len(seen) == 5 * 6


def test_the_start_token_stays_only_as_bos(wren: SourceModel) -> None:
    found = text(wren)
    with_bos = found.windows(3, 10, BOS)
    without = found.windows(3, 9, None)
    assert with_bos[:, 0].tolist() == [BOS] * 3
    assert torch.equal(with_bos[:, 1:], without)


def test_windows_are_mixed_with_those_of_a_corpus(wren: SourceModel) -> None:
    corpus = Corpus(name="words", split="train", text="a few words " * 50, sha256="")
    windows = calibration_windows(
        [(corpus, 1.0), (text(wren), 3.0)], wren.tokenizer, samples=4, window=8, seed=3
    )
    assert windows.shape == (4, 8)
    assert torch.equal(windows[1:], text(wren).windows(3, 8, None))


def test_kept_tokens_are_not_sampled_again(
    wren: SourceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = text(wren, tmp_path / "kept").windows(2, 6, None)
    monkeypatch.setattr(generated, "sample_tokens", None)
    again = text(wren, tmp_path / "kept", known_only=True).windows(2, 6, None)
    assert torch.equal(first, again)
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".safetensors"]


@pytest.mark.parametrize("content", [b"", b"not a safetensors file"])
def test_damaged_tokens_are_sampled_again(
    content: bytes, wren: SourceModel, tmp_path: Path
) -> None:
    found = text(wren, tmp_path)
    first = found.windows(2, 6, None)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(content)
    assert torch.equal(found.windows(2, 6, None), first)


def test_other_settings_are_other_tokens(wren: SourceModel, tmp_path: Path) -> None:
    found = text(wren, tmp_path)
    one, two = found.windows(2, 6, None), found.windows(3, 6, None)
    assert (one.shape, two.shape) == ((2, 6), (3, 6))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_was_never_sampled_is_asked_for(wren: SourceModel, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="run `asvd-q search`"):
        text(wren, tmp_path, known_only=True).windows(2, 6, None)


def test_a_model_that_does_not_fit_says_so(
    wren: SourceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(ResourceError, match=r"calibration\.corpora instead of generated"):
        text(wren).windows(2, 6, None)
