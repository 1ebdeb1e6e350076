"""What the scripts that are studies share: options, corpora, the recipe they vary, and the end."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from asvd_q.files import make_folder
from asvd_q.recipe.corpora import BUILT_IN, GENERATED
from asvd_q.report.tables import print_table
from asvd_q.study.grid import expand
from asvd_q.study.plots import plot_study
from asvd_q.study.record import StudyRecord
from asvd_q.study.run import run_study
from asvd_q.study.schema import StudySection
from asvd_q.study.tables import dense_table, study_table
from benchmarks._points import tell
from benchmarks.common import BATCH, names, write_json

__all__ = ["ALL", "StudyOptions", "calibration", "finish_studies", "parse_study_options", "study"]

ALL = "all"
"""What a mixture of all corpora is called."""

_ROOT = Path(__file__).resolve().parent.parent
_SEED = 233


@dataclass(frozen=True)
class StudyOptions:
    """The common options, parsed.

    Attributes:
        cache: keeps points, sensitivities and sampled text.
        own: the script's own options.
    """

    model: Path
    data: Path | None
    corpora: tuple[str, ...]
    window: int
    windows: int
    samples: int
    cache: Path
    json: Path | None
    plot: Path | None
    own: Any

    def source(self, name: str) -> str:
        """A corpus as a recipe has it."""
        return name if self.data is None else str(self.data.resolve() / f"{name}.{{split}}.txt")


@contextmanager
def parse_study_options(
    description: str, parser: argparse.ArgumentParser
) -> Iterator[StudyOptions]:
    """Parse the command line; a cache that nobody named is gone at the end of the block."""
    parser.description = description
    parser.add_argument("--model", type=Path, default=_ROOT / "tests/data/wren")
    parser.add_argument(
        "--data", type=Path, help="folder of NAME.{train,test}.txt; built-in corpora without it"
    )
    parser.add_argument(
        "--corpora", type=names, help="wikitext2,ptb,tinystories,pycode; the built-in ones"
    )
    parser.add_argument("--window", type=int, default=512, help="tokens per window")
    parser.add_argument("--windows", type=int, default=64, help="of each corpus to evaluate on")
    parser.add_argument("--samples", type=int, default=32, help="calibration windows")
    parser.add_argument("--cache", type=Path, help="folder that a later call goes on from")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--plot", type=Path, help="folder that the plots go to")
    own = parser.parse_args()
    given = ("wikitext2", "ptb", "tinystories", "pycode") if own.data else BUILT_IN
    with tempfile.TemporaryDirectory() as temporary:
        yield StudyOptions(
            model=own.model,
            data=own.data,
            corpora=own.corpora or given,
            window=own.window,
            windows=own.windows,
            samples=own.samples,
            cache=own.cache or Path(temporary),
            json=own.json,
            plot=own.plot,
            own=own,
        )


def calibration(options: StudyOptions, corpora: tuple[str, ...]) -> dict[str, Any]:
    """A `calibration` section as the other scripts have it.

    Windows start with BOS only where text is sampled from the model.
    """
    sources = [name if name == GENERATED else options.source(name) for name in corpora]
    return {
        "corpora": sources,
        "samples": options.samples,
        "window": options.window,
        "seed": _SEED,
        "batch_size": BATCH,
        "bos": "auto" if GENERATED in corpora else False,
    }


def study(
    options: StudyOptions, name: str, recipe: Mapping[str, Any], fields: Mapping[str, Any]
) -> StudyRecord:
    """Compute one study of a script, and draw it.

    Args:
        name: of its files.
        recipe: sections beside `model` and `evaluate`.
        fields: of the study, without its recipe.
    """
    section = StudySection.model_validate({"recipe": name, "distances": False, **fields})
    content = {
        # float32, so that rounding does not blur a method.
        "model": {"path": str(options.model.resolve()), "dtype": "float32"},
        "evaluate": {
            "corpora": [options.source(corpus) for corpus in options.corpora],
            "window": options.window,
            "windows": options.windows,
            "batch_size": BATCH,
            "bos": False,
        },
        **recipe,
    }
    points = expand(section, content, Path(name), origin=name)
    record = run_study(
        points,
        options.cache,
        name=section.name or name,
        distances=section.distances,
        tell=tell,
    )
    if options.plot is not None and section.plot is not None:
        make_folder(options.plot)
        plot_study(record, section.plot, options.plot, name)
    return record


def finish_studies(options: StudyOptions, records: Mapping[str, StudyRecord]) -> None:
    """Print the tables and write the numbers."""
    for record in records.values():
        print_table(Console(), study_table(record))
        print_table(Console(), dense_table(record))
    if options.json is not None:
        content = {name: json.loads(record.model_dump_json()) for name, record in records.items()}
        write_json(options.json, content)
