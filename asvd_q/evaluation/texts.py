"""The tokens that models are evaluated and artefacts are proven on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from asvd_q.errors import ModelError
from asvd_q.evaluation.quality import TokenWindows
from asvd_q.models import SourceModel
from asvd_q.recipe import CorpusSection, EvaluateSection
from asvd_q.statistics.corpora import load_corpus
from asvd_q.statistics.windows import evaluation_windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["evaluation_texts", "proof_tokens"]

_PROOF_WINDOWS, _PROOF_LENGTH = 2, 96


def evaluation_texts(
    section: EvaluateSection, tokenizer: PreTrainedTokenizerBase
) -> list[TokenWindows]:
    """Every corpus of an `evaluate` section, cut into windows.

    Raises:
        CorpusError: a corpus that is missing, empty or too short.
    """
    found = []
    for corpus in map(load_corpus, section.corpora):
        tokens = evaluation_windows(
            corpus,
            tokenizer,
            window=section.window,
            windows=section.windows,
            bos=section.bos,
        )
        found.append(
            TokenWindows(
                corpus=corpus.name, split=corpus.split, sha256=corpus.sha256, tokens=tokens
            )
        )
    return found


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
