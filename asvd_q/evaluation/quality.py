"""Perplexity of a Runner on windows of tokens, and its distance from a reference Runner."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from asvd_q.artefact import Runner
from asvd_q.errors import ModelError
from asvd_q.metrics import PerplexityMeter, agreement, kl_divergence, token_nll
from asvd_q.recipe.corpora import Protocol

__all__ = [
    "Quality",
    "TokenWindows",
    "compare_quality",
    "distant_quality",
    "evaluate_quality",
    "scored_quality",
]


class _Frozen(BaseModel):
    # Infinity, which a perplexity can be, has no number in JSON.
    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, ser_json_inf_nan="strings"
    )


class TokenWindows(_Frozen):
    """The tokens of an evaluation and where they come from.

    Attributes:
        corpus, split, sha256: of the text.
        tokens: int64 (windows, tokens).
        protocol: how they were cut, as an `evaluate` section has it.
    """

    corpus: str
    split: str
    sha256: str
    tokens: Tensor
    protocol: Protocol = "windows"


class Quality(_Frozen):
    """How well a model predicts a text.

    Attributes:
        corpus, split, protocol, window, windows: what was read, and how it was cut.
        tokens: number of predicted tokens.
        perplexity: exp of the mean next-token loss inside the windows.
        kl: mean KL divergence from the reference's distribution, nats per token.
        agreement: share of positions with the reference's arg max.
        runtime: what computed the logits.
    """

    corpus: str
    split: str
    window: int
    windows: int
    tokens: int
    perplexity: float
    kl: float | None = None
    agreement: float | None = None
    runtime: str
    protocol: Protocol = "windows"


Advance = Callable[[int, int], None]


def evaluate_quality(
    runner: Runner,
    text: TokenWindows,
    *,
    batch_size: int,
    progress: Advance = lambda done, total: None,
) -> Quality:
    """Perplexity of one model.

    Args:
        batch_size: windows per forward pass.
        progress: called with the batches done and their number.
    """
    scored = runner.score(torch.split(text.tokens, batch_size))
    return scored_quality(scored, runner.runtime, text, batch_size=batch_size, progress=progress)


def scored_quality(
    scored: Iterable[Tensor],
    runtime: str,
    text: TokenWindows,
    *,
    batch_size: int,
    progress: Advance = lambda done, total: None,
) -> Quality:
    """Perplexity of logits that a model has given.

    Args:
        scored: for every batch, in order, (windows, tokens, vocabulary).
        runtime: what computed them.
    """
    batches, meter = torch.split(text.tokens, batch_size), PerplexityMeter()
    for done, (batch, logits) in enumerate(zip(batches, scored, strict=True)):
        meter.update(token_nll(logits, batch))
        progress(done + 1, len(batches))
    return _quality(runtime, text, meter)


def compare_quality(
    reference: Runner,
    runner: Runner,
    text: TokenWindows,
    *,
    batch_size: int,
    progress: Advance = lambda done, total: None,
) -> tuple[Quality, Quality]:
    """Perplexity of two models on the same tokens, and the second's distance from the first.

    Returns:
        Quality of `reference`, and of `runner` with `kl` and `agreement`.

    Raises:
        ModelError: their vocabularies differ.
    """
    batches, before = torch.split(text.tokens, batch_size), PerplexityMeter()

    def expected() -> Iterable[Tensor]:
        for batch, logits in zip(batches, reference.score(batches), strict=True):
            yield logits
            # Comes after the look at the vocabularies; the strict zip asks for one more at the end.
            before.update(token_nll(logits, batch))

    found = distant_quality(expected(), runner, text, batch_size=batch_size, progress=progress)
    return _quality(reference.runtime, text, before), found


def distant_quality(
    expected: Iterable[Tensor],
    runner: Runner,
    text: TokenWindows,
    *,
    batch_size: int,
    progress: Advance = lambda done, total: None,
) -> Quality:
    """Perplexity of a model, and its distance from logits that another has given.

    Args:
        expected: the other's for every batch, in order, each (windows, tokens, vocabulary).

    Returns:
        Quality with `kl` and `agreement`.

    Raises:
        ModelError: the vocabularies differ.
    """
    batches, meter = torch.split(text.tokens, batch_size), PerplexityMeter()
    divergence, agreed = 0.0, 0
    triples = zip(batches, expected, runner.score(batches), strict=True)
    for done, (batch, reference, logits) in enumerate(triples):
        if reference.shape[-1] != logits.shape[-1]:
            raise ModelError(
                f"the reference has a vocabulary of {reference.shape[-1]} tokens and the model one "
                f"of {logits.shape[-1]}: give the model that it was made from"
            )
        meter.update(token_nll(logits, batch))
        divergence += float(kl_divergence(reference, logits).sum())
        agreed += int(agreement(reference, logits).sum())
        progress(done + 1, len(batches))
    positions = text.tokens.numel()
    distance = {"kl": divergence / positions, "agreement": agreed / positions}
    return _quality(runner.runtime, text, meter).model_copy(update=distance)


def _quality(runtime: str, text: TokenWindows, meter: PerplexityMeter) -> Quality:
    windows, window = text.tokens.shape
    return Quality(
        corpus=text.corpus,
        split=text.split,
        window=window,
        windows=windows,
        tokens=meter.tokens,
        perplexity=meter.perplexity,
        runtime=runtime,
        protocol=text.protocol,
    )
