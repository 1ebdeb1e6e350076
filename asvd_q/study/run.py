"""Computes a study point by point, and goes on where an earlier call stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from asvd_q.errors import NumericsError, RankError, first_line
from asvd_q.evaluation.quality import Quality
from asvd_q.progress import Progress, silent
from asvd_q.report.run import versions
from asvd_q.study.grid import Point
from asvd_q.study.keys import statistics_key
from asvd_q.study.record import PointRecord, StudyRecord, rows_of
from asvd_q.study.results import PointResult, Results
from asvd_q.study.workbench import Ready, Workbench

__all__ = ["Tell", "run_study"]

Tell = Callable[[str], None]
"""Called with a line as soon as something is known."""

# What another point need not run into: a number that is not finite, a target out of reach.
_FAILURES = (NumericsError, RankError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]

_STAGE = "points"


def run_study(
    points: Sequence[Point],
    folder: Path,
    *,
    name: str,
    distances: bool = True,
    progress: Progress = silent,
    tell: Tell = lambda line: None,
) -> StudyRecord:
    """Compress and evaluate all points, each model once.

    Every point is kept as soon as it is known. One that fails, because a number is not finite or
    a target is out of reach, is recorded with the reason, and the others go on.

    Args:
        points: at least one.
        folder: keeps points and whatever they share.
        name: title of the study.
        distances: measure KL divergence and agreement with the dense model too.
        progress: called as work goes on.
        tell: called with a line for every point.

    Raises:
        AsvdQError: a model or a corpus that cannot be read, no room on the disk, …
    """
    results = Results(folder)
    bench = Workbench(folder, distances=distances, progress=progress)
    try:
        ready = []
        for done, point in enumerate(points):
            ready.append(bench.ready(point.recipe))
            progress("reading texts", done + 1, len(points))
        dense, failures = {}, {}
        order = _in_order(ready)
        told = 0
        for done, index in enumerate(order):
            one, title = ready[index], points[index].title
            qualities = bench.dense(one, results.dense)
            for key, quality in qualities:
                if results.dense(key) is None:
                    results.add_dense(key, quality)
                    tell(f"dense model on {quality.corpus}: perplexity {quality.perplexity:.3f}")
            dense[one.key] = tuple(quality for _, quality in qualities)
            known = results.point(one.key)
            if known is None and one.key not in failures:
                told += 1
                try:
                    known = bench.compute(one)
                    results.add_point(one.key, known)
                    line = _line(known, dense[one.key])
                except _FAILURES as error:
                    failures[one.key] = first_line(error)
                    line = f"failed: {failures[one.key]}"
                tell(f"[{done + 1}/{len(order)}] {title}: {line}")
            progress(_STAGE, done + 1, len(order))
        if told < len(order):
            tell(f"{len(order) - told} of {len(order)} models were known already")
    finally:
        bench.close()
    found = tuple(
        PointRecord(
            settings=dict(point.settings),
            repeat=dict(point.repeat),
            key=one.key,
            calibration=_calibration(point),
            dense=dense[one.key],
            result=results.point(one.key),
            failure=failures.get(one.key),
        )
        for point, one in zip(points, ready, strict=True)
    )
    return StudyRecord(
        name=name,
        model=tuple(dict.fromkeys(one.prepared.source.name for one in ready)),
        versions=versions(),
        varied=tuple(points[0].settings),
        repeated=tuple(points[0].repeat),
        points=found,
        rows=rows_of(found),
    )


def _in_order(ready: Sequence[Ready]) -> list[int]:
    """One index for every model; those that share statistics stand together."""
    first: dict[str, int] = {}
    groups: dict[str, list[int]] = {}
    for index, one in enumerate(ready):
        if first.setdefault(one.key, index) == index:
            shared = statistics_key(one.prepared, one.tokens) or one.key
            groups.setdefault(shared, []).append(index)
    return [index for group in groups.values() for index in group]


def _calibration(point: Point) -> tuple[str, ...]:
    section = point.recipe.calibration
    return () if section is None else tuple(corpus.name for corpus in section.corpora)


def _line(result: PointResult, dense: Sequence[Quality]) -> str:
    changes = (
        f"{after.corpus} {after.perplexity / before.perplexity - 1:+.2%}"
        for before, after in zip(dense, result.quality, strict=True)
    )
    return f"{', '.join(changes)}; kept {result.kept_ratio:.4f}, {result.seconds:.1f} s"
