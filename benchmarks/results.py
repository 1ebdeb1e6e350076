"""Run the scripts whose numbers are quoted, and write them on one page.

    python -m benchmarks.results [NAME …] [--fast] [--data DIR] [--points NAME=PATH …]
                                 [--fresh]
    python -m benchmarks.results --pages

Without a NAME everything runs, which takes hours and needs DIR: a folder of NAME.train.txt and
NAME.test.txt, as in `benchmarks/common.py`; --fast is what needs nothing but this repository and
is done in under an hour. Scripts run one after the other, each in a process of its own.
What was found lies in `benchmarks/results/NAME.json` with machine, versions, date and time; then
`benchmarks/RESULTS.md`, the tables between `<!-- begin NAME -->` and `<!-- end -->` in README and
docs, and the picture are written from these files alone. --pages does only that.

An interrupted call goes on where it stopped: finished scripts are not run again (--fresh runs
them), and those with --append or --cache go on with their own points. --points gives a script what
another call of it has left: the file of its --json, or the folder of its --cache.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks.page.blocks import fill_pages
from benchmarks.page.picture import PICTURE, draw, series_of
from benchmarks.page.registry import ENTRIES
from benchmarks.page.rendering import write_page
from benchmarks.page.result import MissingResultError, Results
from benchmarks.page.running import run_all

__all__ = ["main"]

_WORK = Path(__file__).resolve().parent.parent / "runs" / "bench"


def main() -> None:
    options = _options()
    results = Results()
    failed = []
    if not options.pages:
        chosen = [
            entry
            for entry in ENTRIES
            if (entry.name in options.names or not options.names)
            and (entry.fast or not options.fast)
        ]
        if options.fresh:
            shutil.rmtree(_WORK, ignore_errors=True)
        for name, path in options.points:
            (_WORK / name).mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, _WORK / name / "cache", dirs_exist_ok=True)
            else:
                shutil.copy(path, _WORK / name / "numbers.json")
        failed = run_all(chosen, results, _WORK, options.data)
    results = Results()
    write_page(results)
    for line in fill_pages(results):
        print(line)
    try:
        draw(series_of(results))
    except MissingResultError as error:
        print(f"{PICTURE.name} stays as it is: {error}")
    if failed:
        sys.exit("; ".join(failed))


def _points(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not Path(path).exists() or not any(one.name == name for one in ENTRIES):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=PATH of a script and what it left")
    return name, Path(path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(one.name for one in ENTRIES)}"
    )
    parser.add_argument("--fast", action="store_true", help="what needs no texts and minutes alone")
    parser.add_argument("--data", type=Path, help="folder of NAME.{train,test}.txt")
    parser.add_argument(
        "--points",
        type=_points,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="to go on with; may be repeated",
    )
    parser.add_argument("--fresh", action="store_true", help="go on with nothing")
    parser.add_argument("--pages", action="store_true", help="run nothing, write the pages")
    options = parser.parse_args()
    for name in options.names:
        if name not in {entry.name for entry in ENTRIES}:
            parser.error(f"{name!r} is none of {', '.join(one.name for one in ENTRIES)}")
    return options


if __name__ == "__main__":
    main()
