"""Which rank for which layer: what scaling, search, refit and calibration text are worth.

Claims: what the recipes do by default, beside the same with one of its parts exchanged, the
published search and cheap allocations of the literature among them, at the same parameters.

    python -m benchmarks.allocation --data DIR [--parts scalings,methods,refit,calibration,default]
                                    [--targets 0.9,0.8] [--cache DIR] [--json FILE --append]

A target is the kept ratio of the parameters of the blocks' linear layers; the rank multiple is 1,
so that a method may come as close to it as it can. What comes of it is `kept`.

scalings     the default search (fast sensitivities from sampled labels, optimal choice) and plain
             factors, for every scaling
methods      what else may choose the ranks, for whitening: strs; exact sensitivities, as divergence
             and as loss; hybrid ones; stable ranks; effective ranks and truncation losses, which
             look at the singular values of W S alone
refit        the default search's ranks: plain, with statistics of the compressed model, and with
             the factors fitted to the dense model's outputs
calibration  one corpus, a mixture, and text that the model samples itself; plain and with refit
default      what the recipes do

Points that parts share are computed once. With --json each is written as soon as it is known;
--append keeps those that the file holds, and does not compute them again. --cache keeps the
sensitivities and the sampled text for later runs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from asvd_q.errors import RankError
from asvd_q.report.tables import Table
from benchmarks._parts import add_options, settings_of
from benchmarks._points import Points, add_append, open_points, tell
from benchmarks._ranks import RankFinder
from benchmarks._setting import Point, Setting
from benchmarks.common import Bench, finish, parse_options

__all__ = ["compute", "compute_all", "main"]


def compute(bench: Bench, finder: RankFinder, setting: Setting) -> Point:
    """Find the ranks, compress, and evaluate.

    Raises:
        RankError: the method cannot reach the target.
    """
    start = time.perf_counter()
    if setting.method == "dense":
        kept, perplexity = 1.0, bench.perplexities()
    else:
        sections = {
            "calibration": {"sequential": setting.sequential},
            "decompose": {
                "scaling": setting.scaling,
                "refit": setting.refit,
                "ranks": finder.ranks(setting),
            },
        }
        found = bench.compressed(sections, setting.calibration)
        kept, perplexity = found.kept_ratio, found.perplexity
    seconds = time.perf_counter() - start
    return Point(
        **setting.model_dump(), kept_ratio=kept, perplexity=perplexity, seconds=round(seconds, 2)
    )


def compute_all(
    bench: Bench,
    finder: RankFinder,
    settings: Sequence[Setting],
    points: Points[Point],
    tell: Callable[[str], None],
) -> None:
    """Add what is not known yet; a target that a method cannot reach is told and left out."""
    for done, setting in enumerate(settings):
        if points.has(setting, bench.options.corpora):
            continue
        words = f"[{done + 1}/{len(settings)}] {' '.join(_describe(setting))} {setting.target:g}"
        try:
            point = compute(bench, finder, setting)
        except RankError as error:
            tell(f"{words}: {error}")
            continue
        points.add(point)
        tell(f"{words}: {point.seconds} s")


def _describe(setting: Setting) -> tuple[str, ...]:
    refit = "refit" if setting.refit else "sequential" if setting.sequential else "plain"
    plain = setting.method == "dense"
    return (
        setting.method,
        setting.sensitivity or "–",
        setting.scaling or "–",
        "–" if plain else refit,
        ",".join(setting.calibration) or "–",
    )


def _table(points: Iterable[Point], corpora: Sequence[str]) -> Table:
    rows = tuple(
        (
            *_describe(point),
            f"{point.target:.4f}",
            f"{point.kept_ratio:.4f}",
            *(
                f"{point.perplexity[name]:.3f}" if name in point.perplexity else "–"
                for name in corpora
            ),
        )
        for point in points
    )
    columns = ("method", "sensitivity", "scaling", "factors", "calibration", "target", "kept")
    return Table("Allocation: perplexity", (*columns, *corpora), rows)


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--cache", type=Path, help="folder of what later runs need not do again")
    add_append(parser)
    options = parse_options(__doc__ or "", parser)
    points = open_points(Point, options, parser)
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.cache or Path(temporary)
        bench = Bench(options, folder=folder / "generated")
        settings = settings_of(options, bench.source.name)
        finder = RankFinder(bench, folder / "search")
        compute_all(bench, finder, settings, points, tell)
    shown = [
        point
        for point in points
        if (point.model, point.window) == (bench.source.name, options.window)
    ]
    finish(options, _table(shown, options.corpora), points.content())


if __name__ == "__main__":
    main()
