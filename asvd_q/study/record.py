"""`study.json`: every point, and what its repetitions come to together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from asvd_q.evaluation.quality import Quality
from asvd_q.files import write_text
from asvd_q.study.results import PointResult

__all__ = ["STUDY_FILE", "CorpusSummary", "PointRecord", "Row", "Spread", "StudyRecord", "rows_of"]

STUDY_FILE = "study.json"


class _Frozen(BaseModel):
    # Infinity, which a perplexity can be, has no number in JSON.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Spread(_Frozen):
    """Several measurements of one thing.

    Attributes:
        deviation: sample standard deviation; None of a single value, or where one is infinite.
    """

    mean: float
    deviation: float | None
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        finite = all(map(math.isfinite, values))
        return cls(
            mean=statistics.fmean(values) if finite else math.inf,
            deviation=statistics.stdev(values) if finite and len(values) > 1 else None,
            low=min(values),
            high=max(values),
            count=len(values),
        )


class PointRecord(_Frozen):
    """One point.

    Attributes:
        settings, repeat: varied and repeated key → what its value is called.
        key: equal for points that come to the same model, which is made and measured once.
        calibration: names of the corpora it was calibrated on.
        dense: the uncompressed model on the same texts.
        result: None where it failed.
        failure: why.
    """

    settings: dict[str, str]
    repeat: dict[str, str]
    key: str
    calibration: tuple[str, ...]
    dense: tuple[Quality, ...]
    result: PointResult | None
    failure: str | None = None

    @property
    def title(self) -> str:
        """All its settings in one line."""
        settings = {**self.settings, **self.repeat}
        return ", ".join(f"{key} {label}" for key, label in settings.items())

    def change(self, index: int) -> float:
        """The perplexity's change against the dense model on one text, as a share."""
        assert self.result is not None
        return self.result.quality[index].perplexity / self.dense[index].perplexity - 1


class CorpusSummary(_Frozen):
    """A row on one corpus.

    Attributes:
        dense: perplexity of the uncompressed model.
        change: of the perplexity against that, as a share.
    """

    corpus: str
    split: str
    dense: float
    perplexity: Spread
    change: Spread
    kl: Spread | None
    agreement: Spread | None


class Row(_Frozen):
    """A point with all its repetitions that did not fail.

    Attributes:
        keys: of those repetitions; rows with equal ones are of one model.
        corpora: empty where all failed.
        failures: of the others.
    """

    settings: dict[str, str]
    keys: tuple[str, ...]
    calibration: tuple[str, ...]
    kept_ratio: Spread | None
    layer_bytes: Spread | None
    total_bytes: Spread | None
    corpora: tuple[CorpusSummary, ...]
    failures: tuple[str, ...]

    @classmethod
    def of(cls, points: Sequence[PointRecord]) -> Row:
        """Of the repetitions of one point, at least one."""
        done = [point.result for point in points if point.result is not None]
        return cls(
            settings=points[0].settings,
            keys=tuple(point.key for point in points),
            calibration=points[0].calibration,
            kept_ratio=_spread(result.kept_ratio for result in done),
            layer_bytes=_spread(result.layer_bytes for result in done),
            total_bytes=_spread(result.total_bytes for result in done),
            corpora=tuple(_corpora([point for point in points if point.result is not None])),
            failures=tuple(point.failure for point in points if point.failure is not None),
        )

    def corpus(self, name: str) -> CorpusSummary | None:
        """On the corpus of this name."""
        return next((one for one in self.corpora if one.corpus == name), None)


class StudyRecord(_Frozen):
    """What a study has found.

    Attributes:
        model: folder or hub name of the models, in the order in which points name them.
        varied, repeated: the keys.
        points: in the order of the grid.
        rows: the same with repetitions taken together.
    """

    version: Literal[1] = 1
    name: str
    model: tuple[str, ...]
    versions: dict[str, str]
    varied: tuple[str, ...]
    repeated: tuple[str, ...]
    points: tuple[PointRecord, ...]
    rows: tuple[Row, ...]

    @property
    def corpora(self) -> tuple[str, ...]:
        """Names of the corpora of the evaluation."""
        names = (quality.corpus for point in self.points for quality in point.dense)
        return tuple(dict.fromkeys(names))

    @property
    def dense(self) -> tuple[Quality, ...]:
        """Every dense model on every text, each once."""
        return tuple(dict.fromkeys(one for point in self.points for one in point.dense))

    def write(self, path: Path) -> None:
        """Replace the file."""
        write_text(path, self.model_dump_json(indent=1) + "\n")


def rows_of(points: Iterable[PointRecord]) -> tuple[Row, ...]:
    """Points with their repetitions taken together, in the order in which they come."""
    groups: dict[tuple[tuple[str, str], ...], list[PointRecord]] = {}
    for point in points:
        groups.setdefault(tuple(point.settings.items()), []).append(point)
    return tuple(map(Row.of, groups.values()))


def _spread(values: Iterable[float]) -> Spread | None:
    found = list(values)
    return Spread.of(found) if found else None


def _corpora(points: Sequence[PointRecord]) -> Iterable[CorpusSummary]:
    if not points:
        return
    for index, dense in enumerate(points[0].dense):
        qualities = [point.result.quality[index] for point in points if point.result is not None]
        yield CorpusSummary(
            corpus=dense.corpus,
            split=dense.split,
            dense=dense.perplexity,
            perplexity=Spread.of([quality.perplexity for quality in qualities]),
            change=Spread.of([point.change(index) for point in points]),
            kl=_spread(quality.kl for quality in qualities if quality.kl is not None),
            agreement=_spread(
                quality.agreement for quality in qualities if quality.agreement is not None
            ),
        )
