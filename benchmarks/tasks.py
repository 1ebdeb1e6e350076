"""Accuracy on tasks: dense, compressed in torch, and compressed in ONNX Runtime.

Claim: an artefact answers as the store that it was written from does. At accuracy level 0 every
answer is the same; at level 4, which is shipped and rounds activations to int8, the share of equal
answers is in the table.

    python -m benchmarks.tasks [--model DIR] [--recipe FILE] [--task NAME,…] [--limit N]
                               [--data-tasks DIR] [--set KEY=VALUE …] [--json FILE]

Without options it needs no network and nothing that is not in this repository. `--data-tasks`
names a folder with data of well-known tasks, in the files that `benchmarks/_data_tasks.py` lists;
whichever are there are measured too. Scores are lm-eval's.

    same as dense    share of the samples with the dense model's answer
    same as store    how many have the store's
    Δ log-likelihood the largest difference from the store's, over all options, in nats
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from asvd_q.evaluation.tasks.loading import LoadedTask, load_tasks
from asvd_q.evaluation.tasks.record import Item, TaskOutcome, TaskResult, agreement
from asvd_q.evaluation.tasks.running import evaluate_tasks
from asvd_q.opening import open_anything
from asvd_q.pipeline import run
from asvd_q.process import settle_process
from asvd_q.progress import silent
from asvd_q.recipe import TaskSection, load_recipe
from asvd_q.recipe.tasks import CONTINUATION
from asvd_q.report.run import versions
from asvd_q.report.tables import Table, print_table
from asvd_q.report.tasks import metric_text
from benchmarks._data_tasks import write_data_tasks
from benchmarks.common import names, write_json

__all__ = ["LEVELS", "Row", "compress", "main", "measure"]

LEVELS = {"level-0": 0, "level-4": 4}
"""Artefact → its accuracy level."""

_ROOT = Path(__file__).resolve().parent.parent
_BATCH = 4


@dataclass(frozen=True)
class Row:
    """One model at one task.

    Attributes:
        model: dense, store, or the artefact's name.
        same_as_dense: share of equal answers; None of the dense model itself.
        same_as_store: number of equal answers; None of what is no artefact.
        difference: the largest one of a log-likelihood from the store's, nats.
    """

    model: str
    result: TaskResult
    same_as_dense: float | None = None
    same_as_store: int | None = None
    difference: float | None = None


def compress(recipe: Path, model: Path | None, folder: Path, overrides: Sequence[str]) -> Path:
    """Carry out a recipe without its evaluation, with an ONNX artefact for every level."""
    exports = ", ".join(
        f"{{format: onnx, name: {name}, accuracy_level: {level}}}" for name, level in LEVELS.items()
    )
    own = [f"output={folder}", "evaluate=null", f"export=[{exports}]"]
    chosen = [] if model is None else [f"model.path={model.absolute()}"]
    run(load_recipe(recipe, [*chosen, *own, *overrides]), silent)
    return folder


def measure(dense: Path, run_folder: Path, tasks: Sequence[LoadedTask]) -> list[Row]:
    """Every task for the dense model, the store and the artefacts, one model after the other."""
    places = {"dense": dense, "store": run_folder / "store"}
    places |= {name: run_folder / "artefacts" / name for name in LEVELS}
    outcomes = {}
    for name, place in places.items():
        opened = open_anything(place)
        outcomes[name] = evaluate_tasks(
            tasks, opened.runner, opened.tokenizer, context=opened.context, batch_size=_BATCH
        )
    rows = []
    for index in range(len(outcomes["dense"])):
        before, store = outcomes["dense"][index], outcomes["store"][index]
        for name, found in outcomes.items():
            rows.append(_row(name, found[index], before, store))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="in place of the recipe's")
    parser.add_argument("--recipe", type=Path, default=_ROOT / "recipes/wren-asvd-gptq4.yaml")
    parser.add_argument("--task", type=names, default=(CONTINUATION,), help="names with commas")
    parser.add_argument("--limit", type=int, help="samples per task")
    parser.add_argument("--data-tasks", type=Path, help="folder with data of well-known tasks")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        given = list(options.task)
        if options.data_tasks is not None:
            given += map(str, write_data_tasks(options.data_tasks, folder))
        tasks = load_tasks([TaskSection(task=name, limit=options.limit) for name in given])
        made = compress(options.recipe, options.model, folder / "run", options.set)
        dense = options.model or Path(load_recipe(options.recipe).model.path)
        rows = measure(dense, made, tasks)
    print_table(Console(), _table(rows))
    if options.json is not None:
        write_json(options.json, {"versions": versions(), "rows": [_content(row) for row in rows]})


def _row(name: str, found: TaskOutcome, dense: TaskOutcome, store: TaskOutcome) -> Row:
    if name == "dense":
        return Row(name, found.result)
    same = agreement(found.items, dense.items)
    if name == "store":
        return Row(name, found.result, same)
    pairs = list(zip(found.items, store.items, strict=True))
    equal = sum(one.answer == other.answer for one, other in pairs)
    return Row(name, found.result, same, equal, max(_difference(*pair) for pair in pairs))


def _difference(one: Item, other: Item) -> float:
    scores = zip(one.loglikelihoods, other.loglikelihoods, strict=True)
    return max((abs(first - second) for first, second in scores), default=0.0)


def _table(rows: Sequence[Row]) -> Table:
    cells = []
    for row in rows:
        samples = row.result.samples
        metrics = (f"{name} {metric_text(metric)}" for name, metric in row.result.metrics.items())
        cells.append(
            (
                row.result.task,
                row.model,
                str(samples),
                ", ".join(metrics),
                "" if row.same_as_dense is None else f"{row.same_as_dense:.2%}",
                "" if row.same_as_store is None else f"{row.same_as_store} of {samples}",
                "" if row.difference is None else f"{row.difference:.1e}",
            )
        )
    columns = ("task", "model", "samples", "metrics", "same as dense", "same as store")
    return Table("Tasks", (*columns, "Δ log-likelihood"), tuple(cells))


def _content(row: Row) -> dict[str, Any]:
    return asdict(row) | {"result": row.result.model_dump()}


if __name__ == "__main__":
    settle_process()
    main()
