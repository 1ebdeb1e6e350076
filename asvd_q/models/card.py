"""What a source model's own card says that holds for whatever is made of the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from asvd_q.errors import RecipeError
from asvd_q.recipe.text import parse_yaml

__all__ = ["CARD_FILE", "SourceCard", "read_source_card"]

CARD_FILE = "README.md"

_HEADER = re.compile(r"\A---\r?\n(.*?)^---\s*$", re.M | re.S)


class SourceCard(BaseModel):
    """Licence and languages, under the names that the hub's header has for them.

    Attributes:
        license: identifier of the hub, such as "apache-2.0" or "other"; None where the card, or
            the model, has none.
        license_name, license_link: of a licence that is "other".
        language: codes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()


def read_source_card(folder: Path) -> SourceCard:
    """The header of a folder's `README.md`.

    Cards are written by hand: what cannot be read is left out, for it is no fault of the run's.
    """
    try:
        text = (folder / CARD_FILE).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return SourceCard()
    found = _HEADER.match(text)
    try:
        # Norwegian is "no", which YAML 1.1 takes for a truth value.
        header = None if found is None else parse_yaml(found[1], CARD_FILE)
    except RecipeError:
        header = None
    if not isinstance(header, Mapping):
        return SourceCard()
    return SourceCard(
        license=_word(header.get("license")),
        license_name=_word(header.get("license_name")),
        license_link=_word(header.get("license_link")),
        language=_words(header.get("language")),
    )


def _word(value: Any) -> str | None:
    """Text of one line; of a list with a single entry, that entry."""
    found = _words(value)
    return found[0] if len(found) == 1 else None


def _words(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(" ".join(item.split()) for item in items if isinstance(item, str) and item.strip())
