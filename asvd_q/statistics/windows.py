"""Token windows: at random offsets for calibration, consecutive for evaluation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from asvd_q.errors import CorpusError
from asvd_q.recipe.base import Bos
from asvd_q.statistics.corpora import Corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "WindowSource",
    "calibration_windows",
    "evaluation_windows",
    "running_windows",
    "samples_per_corpus",
    "tokenize",
]


class WindowSource(Protocol):
    """Makes calibration windows itself, instead of having them cut from text."""

    @property
    def name(self) -> str:
        """Short name, for messages."""
        ...

    def windows(self, count: int, window: int, first: int | None) -> Tensor:
        """int64 (count, window), starting with the token `first` where that is not None."""


Encode = Callable[[Corpus, "PreTrainedTokenizerBase"], Tensor]
"""What `tokenize` does, or something that knows the result already."""


def tokenize(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The whole corpus as token ids, without special tokens.

    Returns:
        int64 (tokens,).
    """
    # verbose=False: a corpus longer than the model's context is what is wanted here.
    encoded = tokenizer(corpus.text, add_special_tokens=False, verbose=False)
    return torch.tensor(encoded["input_ids"], dtype=torch.int64)


def calibration_windows(
    corpora: Sequence[tuple[Corpus | WindowSource, float]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int,
    window: int,
    seed: int,
    bos: Bos = "auto",
    encode: Encode = tokenize,
) -> Tensor:
    """Windows at random offsets, corpus by corpus in the order given.

    One generator serves all corpora: `random.Random(seed)`, one `randint(0, tokens − window − 1)`
    per window, as the published ASVD and GPTQ code draw them.

    Args:
        corpora: each with its weight in the mixture; see `samples_per_corpus`.
        tokenizer: the model's.
        samples: number of windows in all.
        window: tokens per window.
        seed: of the generator.
        bos: whether the BOS token takes the first place of each window; `auto` when the
            tokenizer itself puts it at the start of a text.
        encode: turns a corpus into tokens.

    Returns:
        int64 (samples, window).

    Raises:
        CorpusError: a corpus with no more than `window` tokens, or with a weight too small for
            one window; or BOS wanted from a tokenizer that has none.
    """
    first = _bos_id(tokenizer, bos)
    generator = random.Random(seed)
    windows: list[Tensor] = []
    shares = samples_per_corpus(corpora, samples)
    for (corpus, _), share in zip(corpora, shares, strict=True):
        if not isinstance(corpus, Corpus):
            windows.extend(corpus.windows(share, window, first))
            continue
        ids = encode(corpus, tokenizer)
        _require(corpus, len(ids), window, window + 1)
        for _ in range(share):
            offset = generator.randint(0, len(ids) - window - 1)
            windows.append(ids[offset : offset + window])
    return _with_bos(torch.stack(windows), first)


def evaluation_windows(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    windows: int | None = None,
    bos: Bos = "auto",
    encode: Encode = tokenize,
) -> Tensor:
    """Consecutive windows from the start of a corpus; a rest shorter than a window is dropped.

    BOS takes the place of a window's first token, whose own loss is never counted, so the same
    tokens are scored with and without it.

    Args:
        corpus: the text.
        tokenizer: the model's.
        window: tokens per window.
        windows: how many at most; None takes all.
        bos, encode: as in `calibration_windows`.

    Returns:
        int64 (windows or fewer, window).

    Raises:
        CorpusError: fewer tokens than one window, or BOS wanted from a tokenizer that has none.
    """
    first = _bos_id(tokenizer, bos)
    return _with_bos(_cut(corpus, encode(corpus, tokenizer), window, windows), first)


def running_windows(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    windows: int | None = None,
    bos: Bos = "auto",
    encode: Encode = tokenize,
) -> Tensor:
    """Consecutive windows of the text as the tokenizer gives it: BOS stands at its start alone.

    It is a token of the text, so all after it are moved by one place; a rest shorter than a
    window is dropped.

    Args:
        bos: `auto` leaves it to the tokenizer, whatever else that puts around a text included.
        encode: where it is not left to the tokenizer.

    Other arguments, the result and errors are those of `evaluation_windows`.

    Source: the evaluation of GPTQ's and SparseGPT's published code.
    """
    if bos == "auto":
        ids = torch.tensor(tokenizer(corpus.text, verbose=False)["input_ids"], dtype=torch.int64)
    else:
        first = _bos_id(tokenizer, bos)
        ids = encode(corpus, tokenizer)
        ids = ids if first is None else torch.cat([torch.tensor([first]), ids])
    return _cut(corpus, ids, window, windows)


def samples_per_corpus(
    corpora: Sequence[tuple[Corpus | WindowSource, float]], samples: int
) -> list[int]:
    """Share windows out in proportion to the weights, by largest remainder.

    Ties go to the corpus that is named first.

    Raises:
        CorpusError: a corpus would get none.
    """
    total = sum(weight for _, weight in corpora)
    exact = [samples * weight / total for _, weight in corpora]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for index in by_remainder[: samples - sum(shares)]:
        shares[index] += 1
    for (corpus, weight), share in zip(corpora, shares, strict=True):
        if share == 0:
            raise CorpusError(
                f"the corpus {corpus.name} gets none of {samples} calibration windows at weight "
                f"{weight:g}: raise its weight or `samples`, or leave it out"
            )
    return shares


def _cut(corpus: Corpus, ids: Tensor, window: int, windows: int | None) -> Tensor:
    _require(corpus, len(ids), window, window)
    count = len(ids) // window
    if windows is not None:
        count = min(count, windows)
    return ids[: count * window].view(count, window)


def _require(corpus: Corpus, tokens: int, window: int, needed: int) -> None:
    if tokens < needed:
        raise CorpusError(
            f"the corpus {corpus.name} ({corpus.split}) has {tokens} tokens and a window of "
            f"{window} needs at least {needed}: take a longer corpus or a smaller `window`"
        )


def _bos_id(tokenizer: PreTrainedTokenizerBase, bos: Bos) -> int | None:
    """The token to put first, None for none."""
    if bos is False:
        return None
    token: int | None = tokenizer.bos_token_id
    if bos is True and token is None:
        raise CorpusError("bos is true and the tokenizer has no BOS token: set bos to false")
    if bos == "auto" and list(tokenizer("a")["input_ids"])[:1] != [token]:
        return None
    return token


def _with_bos(windows: Tensor, token: int | None) -> Tensor:
    windows = windows.clone()
    if token is not None:
        windows[:, 0] = token
    return windows
