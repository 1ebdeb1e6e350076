"""Points of a long benchmark: each is kept as soon as it is known, and not computed twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from asvd_q.recipe.decompose import Scaling
from benchmarks.common import write_json

__all__ = ["Point", "Points", "Setting"]


class Setting(BaseModel):
    """How a model is compressed, and what with; equal settings give equal numbers.

    Attributes:
        model, window: name of the folder; tokens per window, of calibration and evaluation.
        method: what spends the target: `optimal`, `strs` or an allocation of the literature;
            `dense` compresses nothing.
        sensitivity: what the method looks at; None where it looks at singular values alone.
        scaling: of the sensitivities and of the factors.
        sequential, refit: of the compression; the ranks do not depend on them.
        calibration: names of the corpora; none where nothing is compressed.
        target: kept ratio wanted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    window: int
    method: str = "optimal"
    sensitivity: str | None = "fast"
    scaling: Scaling | None = "whitening"
    sequential: bool = False
    refit: bool = False
    calibration: tuple[str, ...]
    target: float

    @property
    def ranks_alone(self) -> Setting:
        """The same without what the ranks do not depend on."""
        return self.model_copy(update={"sequential": False, "refit": False})


class Point(Setting):
    """What came of a setting.

    Attributes:
        kept_ratio: of the parameters of the blocks' linear layers, real.
        perplexity: by corpus.
        seconds: of search, compression and evaluation; what an earlier point has left behind
            is not done again.
    """

    kept_ratio: float
    perplexity: dict[str, float]
    seconds: float | None = None

    @property
    def setting(self) -> Setting:
        return Setting.model_validate(self.model_dump(include=set(Setting.model_fields)))


class Points:
    """Points by setting, in the order in which they came."""

    def __init__(self, path: Path | None, *, append: bool = False) -> None:
        """Take up the points that a file holds.

        Args:
            path: a JSON list that is replaced with every point; None writes nothing.
            append: keep what the file holds; else it is written anew.

        Raises:
            ValueError: the file holds something else.
        """
        self._path = path
        self._found: dict[Setting, Point] = {}
        if append and path is not None and path.exists():
            known = TypeAdapter(list[Point]).validate_json(path.read_bytes())
            self._found = {point.setting: point for point in known}

    def __iter__(self) -> Iterator[Point]:
        return iter(self._found.values())

    def has(self, setting: Setting, corpora: tuple[str, ...]) -> bool:
        """Whether the perplexities of all corpora are known."""
        point = self._found.get(setting)
        return point is not None and set(corpora) <= point.perplexity.keys()

    def add(self, point: Point) -> None:
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
