"""What the values of a key are called in tables, plots and `--only`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asvd_q.errors import RecipeError
from asvd_q.recipe.corpora import FILE_TYPES, file_name

__all__ = ["Choice", "choices_of", "is_meant", "label_of"]


@dataclass(frozen=True)
class Choice:
    """One value of a key, and what it is called."""

    key: str
    label: str
    value: Any


def label_of(value: Any) -> str:
    """A short name: "0.5", "python-docs + generated", "method gptq, bits 3"."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and value.endswith(FILE_TYPES):
        return file_name(value)
    if isinstance(value, Mapping):
        if "source" in value:
            rest = {key: item for key, item in value.items() if key == "weight"}
            name = label_of(value["source"])
            return f"{name} ({label_of(rest)})" if rest else name
        return ", ".join(f"{key} {label_of(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " + ".join(map(label_of, value))
    return str(value)


def choices_of(key: str, values: Mapping[str, Any] | Sequence[Any], origin: str) -> list[Choice]:
    """The values of one key.

    Args:
        values: a mapping gives them names.
        origin: what the study is called in messages.

    Raises:
        RecipeError: two of them would be called the same.
    """
    named = values.items() if isinstance(values, Mapping) else ((label_of(v), v) for v in values)
    found = [Choice(key, label, value) for label, value in named]
    labels = [choice.label for choice in found]
    for label in labels:
        if labels.count(label) > 1:
            raise RecipeError(
                f"{origin}: {key} has two values that are called {label!r}: name them, as a "
                "mapping of names to values"
            )
    return found


def is_meant(choice: Choice, wanted: Any) -> bool:
    """Whether a value is the one, or among those, that somebody names by label or by value."""
    if wanted == choice.value or label_of(wanted) == choice.label:
        return True
    return isinstance(wanted, list) and any(
        item == choice.value or label_of(item) == choice.label for item in wanted
    )
