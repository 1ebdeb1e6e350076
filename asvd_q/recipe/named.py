"""The field's corpora by short names: where they lie on the hub, and how their texts are joined.

The joins are those of the code that published perplexities come from (GPTQ's and SparseGPT's
`datautils.py`), so that a number measured here stands beside theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["NAMED", "NamedCorpus"]


@dataclass(frozen=True)
class NamedCorpus:
    """One data set of the hub.

    Attributes:
        path: its id.
        config: its configuration.
        revision: branch or tag; None for the main one.
        splits: each with how many records are read, from the start; None for all.
        test: the split that perplexity is measured on.
        field: where the text lies in a record; records without text are kept.
        between: joins the records' texts.
        files: the one file that a split is read from, where the whole configuration is not.
        windows: how many at most the standard protocol reads; None for all.
    """

    path: str
    config: str
    splits: Mapping[str, int | None]
    between: str
    revision: str | None = None
    test: str = "test"
    field: str = "text"
    files: Mapping[str, str] | None = None
    windows: int | None = None

    @property
    def hub_name(self) -> str:
        """As `hub:` names it."""
        return f"hub:{self.path}:{self.config}"


_ALL = {"train": None, "validation": None, "test": None}

NAMED: Mapping[str, NamedCorpus] = {
    # Empty lines are records, and count.
    "wikitext2": NamedCorpus("Salesforce/wikitext", "wikitext-2-raw-v1", _ALL, "\n\n"),
    # The main branch is a loading script, which datasets 4 does not run; the hub's own conversion
    # of what it gave stays where it is. GPTQ's `ptb-new`: its `ptb` joins the validation part by
    # empty lines.
    "ptb": NamedCorpus(
        "ptb-text-only/ptb_text_only",
        "penn_treebank",
        _ALL,
        " ",
        revision="refs/convert/parquet",
        field="sentence",
        files={split: f"penn_treebank/{split}/0000.parquet" for split in _ALL},
    ),
    # GPTQ's `c4-new`. Of the train file's documents as many as a tokenizer takes in seconds.
    "c4": NamedCorpus(
        "allenai/c4",
        "en",
        {"train": 10_000, "validation": 1_100},
        " ",
        test="validation",
        files={
            "train": "en/c4-train.00000-of-01024.json.gz",
            "validation": "en/c4-validation.00000-of-00008.json.gz",
        },
        windows=256,
    ),
}
"""By the names that `corpora` and `--corpus` take."""
