"""What comes of points, kept on disk as soon as it is known.

    <study>/points.json     {"version": 1, "dense": {key: quality}, "points": {key: result}}

A key covers all that a number depends on, so a stale one can never be taken for a fresh one, and a
study that was interrupted goes on where it stopped. Failures are not kept: what failed is tried
again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from asvd_q.evaluation.quality import Quality
from asvd_q.files import make_folder, write_text

__all__ = ["POINTS", "PointResult", "Results"]

POINTS = "points.json"


class PointResult(BaseModel):
    """What came of one point.

    Attributes:
        kept_ratio: parameters of the layers looked at, after / before.
        layer_bytes, total_bytes: of those layers, and of the whole model, in a store's count.
        quality: corpus by corpus.
        setbacks: layers that kept a form which was not planned, because it failed.
        seconds: of search, compression and evaluation; what other points have left behind is not
            done again.
    """

    # Infinity, which a perplexity can be, has no number in JSON.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    kept_ratio: float
    layer_bytes: int
    total_bytes: int
    quality: tuple[Quality, ...]
    setbacks: tuple[str, ...] = ()
    seconds: float


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    version: Literal[1] = 1
    dense: dict[str, Quality] = {}
    points: dict[str, PointResult] = {}


class Results:
    """Points and dense models by key."""

    def __init__(self, folder: Path) -> None:
        """Take up what a folder holds; a file that is damaged counts for nothing."""
        self._folder = folder
        try:
            content = _Content.model_validate_json((folder / POINTS).read_bytes())
        except (FileNotFoundError, ValidationError):
            content = _Content()
        self._points = dict(content.points)
        self._dense = dict(content.dense)

    def point(self, key: str) -> PointResult | None:
        """What is known of a point."""
        return self._points.get(key)

    def dense(self, key: str) -> Quality | None:
        """What is known of a dense model on a text."""
        return self._dense.get(key)

    def add_point(self, key: str, result: PointResult) -> None:
        """Keep a point, on disk too."""
        self._points[key] = result
        self._write()

    def add_dense(self, key: str, quality: Quality) -> None:
        """Keep a dense model's quality, on disk too."""
        self._dense[key] = quality
        self._write()

    def _write(self) -> None:
        make_folder(self._folder)
        content = _Content(dense=self._dense, points=self._points)
        write_text(self._folder / POINTS, content.model_dump_json(indent=1) + "\n")
