"""Corpora and their tokens, each read once by whoever asks for them again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from asvd_q.recipe.corpora import CorpusSection
from asvd_q.statistics.corpora import Corpus, load_corpus
from asvd_q.statistics.windows import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["CorpusReader"]


class CorpusReader:
    """Remembers what it has read, for one tokenizer."""

    def __init__(self) -> None:
        self._corpora: dict[tuple[str, ...], Corpus] = {}
        self._tokens: dict[str, Tensor] = {}

    def load(self, section: CorpusSection) -> Corpus:
        """As `load_corpus`."""
        key = (*section.identity, section.field, section.name, section.split)
        if key not in self._corpora:
            self._corpora[key] = load_corpus(section)
        return self._corpora[key]

    def encode(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """As `tokenize`."""
        if corpus.sha256 not in self._tokens:
            self._tokens[corpus.sha256] = tokenize(corpus, tokenizer)
        return self._tokens[corpus.sha256]
