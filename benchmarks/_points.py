"""Points of a long benchmark: each is kept as soon as it is known, and not computed twice."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from benchmarks.common import write_json

__all__ = ["Evaluated", "Points", "add_append", "open_points", "tell"]


class Evaluated(BaseModel):
    """What all points have.

    Attributes:
        perplexity: by corpus.
        seconds: that the point took.
    """

    perplexity: dict[str, float]
    seconds: float | None = None

    @property
    def setting(self) -> Hashable:
        """What was computed; equal settings give equal numbers."""
        raise NotImplementedError


P = TypeVar("P", bound=Evaluated)


class Points(Generic[P]):
    """Points by setting, in the order in which they came."""

    def __init__(self, kind: type[P], path: Path | None, *, append: bool = False) -> None:
        """Take up the points that a file holds.

        Args:
            kind: of points.
            path: a JSON list that is replaced with every point; None writes nothing.
            append: keep what the file holds; else it is written anew.

        Raises:
            ValueError: the file holds something else.
        """
        self._path = path
        self._found: dict[Hashable, P] = {}
        if append and path is not None and path.exists():
            known = TypeAdapter(list[kind]).validate_json(path.read_bytes())  # type: ignore[valid-type]
            self._found = {point.setting: point for point in known}

    def __iter__(self) -> Iterator[P]:
        return iter(self._found.values())

    def has(self, setting: Hashable, corpora: tuple[str, ...]) -> bool:
        """Whether the perplexities of all corpora are known."""
        point = self._found.get(setting)
        return point is not None and set(corpora) <= point.perplexity.keys()

    def add(self, point: P) -> None:
        """Keep a point, with the perplexities that were known of it on other corpora."""
        known = self._found.get(point.setting)
        if known is not None:
            merged = known.perplexity | point.perplexity
            point = point.model_copy(update={"perplexity": merged})
        self._found[point.setting] = point
        if self._path is not None:
            write_json(self._path, self.content())

    def content(self) -> list[dict[str, object]]:
        """What the JSON holds."""
        return [json.loads(point.model_dump_json()) for point in self]


def add_append(parser: argparse.ArgumentParser) -> None:
    """The option that `open_points` reads beside --json."""
    parser.add_argument("--append", action="store_true", help="keep the points of --json")


def open_points(kind: type[P], options: Any, parser: argparse.ArgumentParser) -> Points[P]:
    """The points that the command line names; a bad combination ends the program."""
    if options.append and options.json is None:
        parser.error("--append keeps the points of a file: name it with --json")
    try:
        return Points(kind, options.json, append=options.append)
    except ValidationError as error:
        parser.error(f"--append: {options.json} is no list of this script's points: {error}")


def tell(line: str) -> None:
    """Say at once how far a script has come, beside its table."""
    print(line, file=sys.stderr, flush=True)
