"""Progress of a run: a bar on a terminal, a line per stage elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from asvd_q.progress import Progress as ProgressCallback

__all__ = ["showing_progress"]


@contextmanager
def showing_progress(console: Console) -> Iterator[ProgressCallback]:
    """Yields the callback that stages report to."""
    if not console.is_terminal:
        yield _plain(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bars:
        tasks = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


def _plain(console: Console) -> ProgressCallback:
    """One line when a stage ends: a log should not fill with half-done steps."""

    def advance(stage: str, done: int, total: int) -> None:
        if done == total:
            console.print(f"{stage}: {done}/{total}", markup=False, highlight=False)

    return advance
