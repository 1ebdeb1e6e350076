"""The files that a study ends with."""

from __future__ import annotations

from pathlib import Path

from asvd_q.files import make_folder, write_text
from asvd_q.study.plots import plot_study
from asvd_q.study.record import STUDY_FILE, StudyRecord
from asvd_q.study.schema import LinesPlot, MatrixPlot
from asvd_q.study.tables import study_page

__all__ = ["PAGE", "write_study"]

PAGE = "study.md"


def write_study(record: StudyRecord, folder: Path, plot: LinesPlot | MatrixPlot | None) -> None:
    """Write `study.json`, `study.md` and, if it is to be drawn, `study.png` and `study.svg`."""
    make_folder(folder)
    record.write(folder / STUDY_FILE)
    plots = [] if plot is None else plot_study(record, plot, folder)
    write_text(folder / PAGE, study_page(record, plots))
