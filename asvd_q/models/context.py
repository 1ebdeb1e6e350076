"""How many tokens a model was made for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asvd_q.errors import CorpusError

__all__ = ["context_length", "context_of", "require_context"]

_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")
_INNER = "text_config"


def context_length(fields: Mapping[str, Any]) -> int | None:
    """The context that a configuration names; None where it sets no bound, as with ALiBi.

    Args:
        fields: of a `config.json`, or a configuration's `to_dict()`, which has defaults too.
    """
    for key in _KEYS:
        if isinstance(fields.get(key), int):
            return int(fields[key])
    inner = fields.get(_INNER)
    return context_length(inner) if isinstance(inner, Mapping) else None


def require_context(key: str, window: int, context: int | None) -> None:
    """Raises CorpusError for windows that a model was not made for: its numbers mean nothing there.

    Args:
        key: of the recipe, that says how long windows are.
        context: of the model; None where it has no bound.
    """
    if context is not None and window > context:
        raise CorpusError(
            f"{key} is {window}, and the model's context is {context} tokens: take {context} or "
            "fewer"
        )


def context_of(folder: Path) -> int | None:
    """The context of a model or artefact folder by its `config.json`; None where it says none."""
    path = folder / "config.json"
    return context_length(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
