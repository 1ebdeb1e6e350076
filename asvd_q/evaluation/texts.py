"""The tokens that models are evaluated and artefacts are proven on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from asvd_q.errors import ModelError
from asvd_q.evaluation.quality import TokenWindows
from asvd_q.models import SourceModel
from asvd_q.models.context import require_context
from asvd_q.recipe import CorpusSection, EvaluateSection
from asvd_q.recipe.named import NAMED
from asvd_q.statistics.corpora import load_corpus
from asvd_q.statistics.reading import CorpusReader
from asvd_q.statistics.windows import evaluation_windows, running_windows, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["evaluation_texts", "prompt_tokens", "proof_tokens"]

_PROOF_WINDOWS, _PROOF_LENGTH = 2, 96
_LONGEST_WINDOW = 2048


def evaluation_texts(
    section: EvaluateSection,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
    reader: CorpusReader | None = None,
) -> list[TokenWindows]:
    """Every corpus of an `evaluate` section, cut into windows.

    Args:
        context: tokens that the model was made for; None where it has no bound.
        reader: knows what it has read before; None reads everything anew.

    Raises:
        CorpusError: a corpus that is missing, empty or too short, or windows longer than the
            context.
    """
    longest = min(context or _LONGEST_WINDOW, _LONGEST_WINDOW)
    window = section.window if isinstance(section.window, int) else longest
    require_context("evaluate.window", window, context)
    standard = section.protocol == "standard"
    cut = running_windows if standard else evaluation_windows
    found, reader = [], reader or CorpusReader()
    for part in section.corpora:
        windows = section.windows
        if standard and windows is None and part.source in NAMED:
            windows = NAMED[part.source].windows
        corpus = reader.load(part)
        tokens = cut(
            corpus,
            tokenizer,
            window=window,
            windows=windows,
            bos=section.bos,
            encode=reader.encode,
        )
        found.append(
            TokenWindows(
                corpus=corpus.name,
                split=corpus.split,
                sha256=corpus.sha256,
                tokens=tokens,
                protocol=section.protocol,
            )
        )
    return found


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, batch: int, tokens: int) -> Tensor:
    """Prompts of built-in prose to measure speed with, int64 (batch, tokens).

    One after the other from the start of the text, which begins anew where it ends.
    """
    ids = tokenize(load_corpus(CorpusSection(source="python-docs", split="test")), tokenizer)
    needed = batch * tokens
    return ids.repeat(-(-needed // len(ids)))[:needed].view(batch, tokens)


def proof_tokens(
    source: SourceModel, evaluated: Sequence[TokenWindows], calibration: Tensor | None
) -> Tensor:
    """Real tokens to compare an artefact with its store on, int64 (windows, tokens).

    Those of the evaluation if there are any, else of the calibration, else of built-in text;
    a fixed random stream for a model without a tokenizer.
    """
    if evaluated:
        rows = [text.tokens[0, :_PROOF_LENGTH] for text in evaluated[:_PROOF_WINDOWS]]
        return torch.stack(rows)
    if calibration is not None:
        return calibration[:_PROOF_WINDOWS, :_PROOF_LENGTH]
    corpus = load_corpus(CorpusSection(source="python-docs", split="test"))
    try:
        tokenizer = source.tokenizer
    except ModelError:
        random = torch.Generator().manual_seed(0)
        shape = (_PROOF_WINDOWS, _PROOF_LENGTH)
        return torch.randint(0, source.config.vocab_size, shape, generator=random)
    return evaluation_windows(corpus, tokenizer, window=_PROOF_LENGTH, windows=_PROOF_WINDOWS)
