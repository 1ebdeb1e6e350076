"""YAML as recipes use it: the scalars of YAML 1.2, duplicate keys refused, one-line errors."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from asvd_q.errors import RecipeError

__all__ = ["dump_yaml", "parse_yaml"]

# YAML 1.1, which PyYAML implements, reads 1e-6 as text, `no` as false and 1:30 as 90.
_SCALARS = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, first_characters in _SCALARS:
        for character in first_characters:
            table.setdefault(character, []).append((tag, re.compile(rf"(?:{pattern})\Z")))
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} appears twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers()

    def ignore_aliases(self, data: Any) -> bool:
        return True


def parse_yaml(text: str, origin: str) -> Any:
    """One YAML document as plain Python values.

    Args:
        text: the document.
        origin: what to call it in messages: a file name or an option.

    Raises:
        RecipeError: not YAML, or a key twice in one mapping; the message gives the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = " ".join((error.problem or error.context or "not YAML").split())
        raise RecipeError(f"{origin}{line}: {problem}") from None
    except yaml.reader.ReaderError as error:
        raise RecipeError(f"{origin}: not YAML: {error.reason}") from None
    except RecursionError:
        raise RecipeError(f"{origin}: nested too deeply to be a recipe") from None
    except ValueError as error:
        raise RecipeError(f"{origin}: not YAML that can be read: {error}") from None


def dump_yaml(value: Any) -> str:
    """The same text for equal values; `parse_yaml` of it gives the value back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
