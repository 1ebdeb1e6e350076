"""One line for a person, from pydantic's account of what is wrong with a mapping."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from asvd_q.recipe.lookup import allowed_keys, bounds, field_at, models_at

__all__ = ["Problem", "explain", "explain_validation_error", "first_problem"]

_EXPECTED = {
    "bool": "true or false",
    "dict": "a mapping of keys to values",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "mapping": "a mapping of keys to values",
    "model": "a mapping of keys to values",
    "string": "text",
    "tuple": "a list",
}
_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
_LONGEST_VALUE = 60


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where.

    Attributes:
        path: keys and indices as the user wrote them, from the top.
        text: the rest of the message, beginning after the path.
        others: how many further problems there are.
    """

    path: tuple[str, ...]
    text: str
    others: int = 0


def explain_validation_error(
    error: ValidationError,
    path_prefix: str,
    file: str,
    model: type[BaseModel] | None = None,
) -> str:
    """The message for a part of a recipe that another model checks, such as export options.

    Args:
        error: what that model raised.
        path_prefix: where the part lies, "export.0".
        file: what the recipe is called.
        model: the model that raised it; with it, unknown keys come with the allowed ones.

    Returns:
        One line: file, path, value, what is allowed.
    """
    problem = first_problem(error, None, model)
    prefix = tuple(part for part in path_prefix.split(".") if part)
    # What is said of the whole part has no path of its own, and no colon before it.
    text = problem.text if problem.path or problem.text[:1] in " :" else f": {problem.text}"
    return explain(Problem(prefix + problem.path, text, problem.others), file)


def explain(problem: Problem, origin: str) -> str:
    """The whole line: where from, where, what, and how much more there is."""
    more = f" (and {problem.others} more)" if problem.others else ""
    return f"{origin}: {_dotted(problem.path)}{problem.text}{more}"


def first_problem(error: ValidationError, data: Any, model: type[BaseModel] | None) -> Problem:
    """The problem to report: a misspelt key first, since it explains what is missing.

    Args:
        error: of the validation.
        data: what was validated, to give paths as they were written; None keeps pydantic's.
        model: what it was validated with.
    """
    details = error.errors(include_url=False)
    chosen = next((item for item in details if item["type"] == "extra_forbidden"), details[0])
    path = written_path(data, chosen["loc"]) if data is not None else _plain(chosen["loc"])
    return Problem(path, _text(chosen, path, model), len(details) - 1)


def written_path(data: Any, location: Sequence[int | str]) -> tuple[str, ...]:
    """Pydantic's location without what the user did not write.

    That is: tags of unions, keys inside a value given in its short form, and `corpora` where
    `corpus` was written.
    """
    path: list[str] = []
    node = data
    for position, part in enumerate(location):
        if isinstance(node, Mapping):
            last = position == len(location) - 1
            if part in node or str(part).isdecimal():
                path.append(str(part))
                node = node.get(part)
            elif part == "corpora" and "corpus" in node:
                path.append("corpus")
                node = _Single(node["corpus"])
            elif last and part != "[key]":
                path.append(str(part))
        elif isinstance(node, _Single):
            node = node.value
        elif isinstance(node, (list, tuple)) and isinstance(part, int) and part < len(node):
            path.append(str(part))
            node = node[part]
        else:
            break
    return tuple(path)


@dataclass(frozen=True)
class _Single:
    """The one corpus under `corpus`, which validation sees as a list of one."""

    value: Any


def _text(item: ErrorDetails, path: Sequence[str], model: type[BaseModel] | None) -> str:
    kind, location, value = item["type"], item["loc"], item["input"]
    message = item["msg"].removeprefix("Value error, ")
    expected = _EXPECTED.get(kind.split("_")[0])
    if kind == "extra_forbidden":
        return _unknown_key(str(location[-1]), models_at(model, location[:-1]))
    if kind == "invalid_key" or (location and location[-1] == "[key]"):
        return " is not possible as a key here: a key is text, so put it in quotes"
    if kind == "missing":
        field = field_at(model, location)
        meaning = f": {field.description}" if field is not None and field.description else ""
        return f" is missing{_one_line(meaning)}"
    if kind == "literal_error":
        return _is(value) + _choices(value, str(item["ctx"]["expected"]))
    if kind == "string_too_short":
        return " is empty: expected text"
    if kind == "string_pattern_mismatch":
        return _is(value) + "expected letters, digits, '.', '_' and '-', a letter or digit first"
    if kind == "too_short":
        return " is empty: at least one entry is needed"
    if kind in _BOUNDS:
        return _is(value) + bounds(field_at(model, location), message)
    if expected is not None and kind.rsplit("_", 1)[-1] in ("type", "parsing", "float", "of"):
        quotes = expected == "text" and isinstance(value, (int, float))
        return _is(value) + f"expected {expected}" + (", so put it in quotes" if quotes else "")
    if isinstance(value, (Mapping, BaseModel, list, tuple)):
        return f"{': ' if path else ''}{_one_line(message)}"
    return _is(value) + _one_line(message)


def _unknown_key(key: str, models: Sequence[type[BaseModel]]) -> str:
    allowed = allowed_keys(models)
    if not allowed:
        return " is not a key here"
    close = get_close_matches(key, allowed, n=1)
    hint = f": did you mean {close[0]!r}?" if close else "."
    return f" is not a key here{hint} Allowed: {', '.join(allowed)}"


def _choices(value: Any, expected: str) -> str:
    names = re.findall(r"'([^']*)'", expected)
    close = get_close_matches(value, names, n=1) if isinstance(value, str) else []
    listed = expected.replace("True", "true").replace("False", "false")
    return f"did you mean {close[0]!r}? Allowed: {listed}" if close else f"allowed: {listed}"


def _is(value: Any) -> str:
    return f" is {_shown(value)}: "


def _shown(value: Any) -> str:
    """A value as YAML would have it, on one line and not too long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (Mapping, BaseModel)):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _plain(location: Sequence[int | str]) -> tuple[str, ...]:
    return tuple(str(part) for part in location if part != "[key]")


def _dotted(path: Sequence[str]) -> str:
    return ".".join(part if re.fullmatch(r"[\w-]+", part) else repr(part) for part in path)


def _one_line(text: str) -> str:
    return " ".join(text.split())
