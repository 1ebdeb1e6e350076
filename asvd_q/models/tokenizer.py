"""Loads a tokenizer from a model or artefact folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from asvd_q.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_tokenizer"]


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer whose files lie in a folder.

    Raises:
        ModelError: there are none, or they cannot be read.
    """
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        raise ModelError(f"{folder} has no tokenizer: copy its tokenizer files there")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (ValueError, OSError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded: {reason[0].rstrip(':')}; copy all of its "
            "files there, tokenizer.json among them"
        ) from error
    return tokenizer
