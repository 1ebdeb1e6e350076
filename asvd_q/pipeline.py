"""The order of the stages. Thin: every stage lives in a room of its own."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from asvd_q.artefact import Exporter
from asvd_q.budget.choice import Choice
from asvd_q.budget.format import format_count
from asvd_q.budget.front import Uniform, front, reach, uniform_models
from asvd_q.budget.solving import BudgetResult, budget_offering
from asvd_q.compressing import RECIPE_FILE, SCRATCH, make_store
from asvd_q.compression import SPECTRA_FILE
from asvd_q.errors import RankError, RecipeError, ResourceError
from asvd_q.evaluating import measure_tasks, read_tasks
from asvd_q.evaluation.assess import assess
from asvd_q.evaluation.quality import Quality, TokenWindows
from asvd_q.evaluation.runners import model_runner
from asvd_q.evaluation.texts import proof_tokens
from asvd_q.exporting import ARTEFACTS, export_store, make_exporter
from asvd_q.files import make_folder, require_disk
from asvd_q.opening import STORE, open_run_store
from asvd_q.plan import FloatType, LayerPlan
from asvd_q.preparation import (
    Prepared,
    Tokens,
    prepare,
    read_tokens,
    require_exports,
    require_models,
)
from asvd_q.progress import Progress, silent
from asvd_q.quantization import TORCH_TYPES
from asvd_q.recipe import ExportSection, Recipe
from asvd_q.recipe.budget import BUDGET_TARGETS
from asvd_q.report.budget import write_front
from asvd_q.report.page import REPORT_HTML, REPORT_MARKDOWN, write_report
from asvd_q.report.resources import StageMeter
from asvd_q.report.run import RUN_FILE, ArtefactRecord, Quantity, RunRecord, versions
from asvd_q.report.search import SEARCH
from asvd_q.rounds import ROUNDS, search_and_compress, solve, write_result
from asvd_q.search.ranks import SearchResult
from asvd_q.store import Store, is_store

__all__ = ["export_run", "frontier", "prepare_known", "run", "search"]

_LOG_FILE = "log.txt"

_OURS = (RUN_FILE, RECIPE_FILE, ROUNDS, SPECTRA_FILE, REPORT_HTML, REPORT_MARKDOWN, _LOG_FILE)
"""Files that a run leaves in its folder."""

logger = logging.getLogger("asvd_q")


def run(recipe: Recipe, progress: Progress, *, fresh: bool = False) -> RunRecord:
    """Carry out a recipe, or go on with it where an earlier run of it stopped.

    Args:
        progress: called as work goes on.
        fresh: throw away what an earlier run left in the output folder.

    Returns:
        The record that is also written to `run.json`, and from there into the report: after the
        evaluation, and again after every export, so that an export that fails loses nothing.
    """
    folder, meter = Path(recipe.output), StageMeter()
    with meter.stage("prepare"):
        prepared = prepare(recipe)
        require_models(prepared)
        if not recipe.searches:
            require_exports(prepared)
        _require_claimable(folder)
        tasks = read_tasks(prepared)
        tokens = read_tokens(prepared, folder, progress)
        _claim(folder, fresh=fresh)
        _check_disk(prepared, folder)
    with _log_to(folder / _LOG_FILE):
        progress = _logged(progress)
        if not recipe.searches:
            with meter.stage("compress"):
                store = make_store(prepared, folder, tokens.calibration, progress)
        else:
            windows = _calibration(tokens)
            prepared, store = search_and_compress(prepared, windows, folder, meter, progress)
        with meter.stage("evaluate"):
            dense, quality = _evaluate(prepared, store, tokens.texts, progress)
            answered = measure_tasks(prepared, store, tasks, progress)
        record = _record(prepared, store, tokens).model_copy(
            update={
                "stages": tuple(meter.records),
                "dense_quality": tuple(dense),
                "quality": tuple(quality),
                "dense_tasks": answered.dense,
                "tasks": answered.results,
            }
        )
        record = _with_earlier(record, folder)
        _write(record, folder)
        for section, exporter in prepared.exports:
            progress(f"exporting {section.name}", 0, 1)
            with meter.stage(f"export {section.name}"):
                sample = proof_tokens(prepared.source, tokens.texts, tokens.calibration)
                artefact = _export(store, exporter, section, folder, sample, record)
            progress(f"exporting {section.name}", 1, 1)
            record = record.with_artefact(artefact)
            record = record.model_copy(update={"stages": tuple(meter.records)})
            _write(record, folder)
        for note in _notes(record):
            logger.info(note)
    return record


def search(recipe: Recipe, progress: Progress) -> SearchResult | BudgetResult:
    """Carry out a recipe's search alone; what it finds is kept in the run folder."""
    if not recipe.searches:
        raise RecipeError(
            "the recipe has no `search` or `budget` section: there is nothing to search for"
        )
    prepared, folder = prepare(recipe), Path(recipe.output)
    require_models(prepared)
    tokens = read_tokens(prepared, folder, progress)
    make_folder(folder)
    result = solve(prepared, _calibration(tokens), folder, progress).result
    write_result(result, folder)
    return result


def frontier(
    recipe: Recipe, progress: Progress, budgets: Sequence[float] = ()
) -> tuple[list[Choice], list[Uniform]]:
    """The best predicted model at every budget, whatever the recipe's own target is.

    Args:
        budgets: bits per weight of the linear layers; by default a row of them.

    Returns:
        The models, and plain quantization beside them; both lie in the run folder afterwards.
    """
    if recipe.budget is None:
        raise RecipeError("the recipe has no `budget` section: there is nothing to choose from")
    # A budget of time keeps other forms than one of bytes.
    targets = {**dict.fromkeys(BUDGET_TARGETS), "bits_per_weight": 8.0}
    recipe = recipe.model_copy(update={"budget": recipe.budget.model_copy(update=targets)})
    prepared, folder = prepare(recipe), Path(recipe.output)
    tokens = read_tokens(prepared, folder, progress)
    make_folder(folder)
    tried, offering = budget_offering(
        recipe,
        prepared.model(),
        _calibration(tokens),
        format_count(recipe, prepared.float_type, prepared.exports),
        folder / SEARCH,
        progress,
    )
    choices, uniform = front(offering, budgets), uniform_models(tried, offering)
    if not choices:
        low, high = reach(offering)
        raise RankError(
            f"no budget can be met: the forms on offer reach from {low:.3f} to {high:.3f} bits "
            "per weight"
        )
    write_front(choices, uniform, folder / SEARCH)
    return choices, uniform


def export_run(folder: Path, section: ExportSection, model: str | None = None) -> ArtefactRecord:
    """Add another artefact to a finished run; nothing is compressed again.

    Args:
        model: as in `open_run_store`.
    """
    exporter = make_exporter(section.format, section.options, where="--option", file="export")
    store = open_run_store(folder, model)
    record, sample = RunRecord.read(folder), proof_tokens(store.source, [], None)
    artefact = _export(store, exporter, section, folder, sample, record)
    _write(record.with_artefact(artefact), folder)
    return artefact


def prepare_known(recipe: Recipe) -> tuple[Prepared, SearchResult | BudgetResult | None]:
    """A recipe with its forms taken from a search that has been run; writes nothing.

    Returns:
        With what that search has found, where the recipe wants one.

    Raises:
        RecipeError: the recipe wants a search, and what it needs is not there.
    """
    prepared = prepare(recipe)
    if not recipe.searches:
        return prepared, None
    folder = Path(recipe.output)
    windows = _calibration(read_tokens(prepared, folder, known_only=True))
    found = solve(prepared, windows, folder, silent, known_only=True)
    return found.prepared, found.result


def _calibration(tokens: Tokens) -> Tensor:
    assert tokens.calibration is not None  # the recipe's own check: a search needs calibration
    return tokens.calibration


def _require_claimable(folder: Path) -> None:
    """Raises ResourceError when the folder holds a model, or a recipe that is not a run's."""
    if not is_store(folder / STORE) and (folder / RECIPE_FILE).exists():
        raise ResourceError(
            f"{folder} holds a {RECIPE_FILE} that is not a run's and would be overwritten: "
            "choose another `output`"
        )
    if (folder / "config.json").exists():
        raise ResourceError(
            f"{folder} holds a model (config.json), and a run would lie among its files: choose "
            "another `output`"
        )


def _claim(folder: Path, *, fresh: bool) -> None:
    """Make the output folder ours, without touching what is not.

    Args:
        fresh: remove what an earlier run left; sensitivities and generated text stay, each
            under its key.

    Raises:
        ResourceError: the folder cannot be written.
    """
    if fresh and is_store(folder / STORE):
        for name in _OURS:
            (folder / name).unlink(missing_ok=True)
        # The store goes last: it is what tells that the folder is ours.
        for part in (ARTEFACTS, SCRATCH, STORE):
            shutil.rmtree(folder / part, ignore_errors=True)
    make_folder(folder)


def _check_disk(prepared: Prepared, folder: Path) -> None:
    """Codes take a byte each in the store; an artefact is at most the model in float32."""
    parameters = sum(info.numel for info in prepared.source.tensors.values())
    require_disk(folder, parameters * (1 + 4 * len(prepared.exports)))


def _evaluate(
    prepared: Prepared, store: Store, texts: Sequence[TokenWindows], progress: Progress
) -> tuple[list[Quality], list[Quality]]:
    """Quality of the dense model (if the recipe wants it) and of the store, text by text."""
    section = prepared.recipe.evaluate
    if section is None or not texts:
        return [], []
    device, dtype = prepared.device, TORCH_TYPES[prepared.recipe.compute_dtype]
    runner = model_runner(prepared.source, store.replaced, device=device, dtype=dtype)
    reference = model_runner(prepared.source, device=device, dtype=dtype) if section.dense else None
    found = assess(runner, reference, texts, batch_size=section.batch_size, progress=progress)
    dense = [one.dense for one in found if one.dense is not None]
    return dense, [one.quality for one in found]


def _export(
    store: Store,
    exporter: Exporter,
    section: ExportSection,
    folder: Path,
    tokens: Tensor,
    record: RunRecord,
) -> ArtefactRecord:
    return export_store(
        store,
        exporter,
        name=section.name,
        run_folder=folder,
        tokens=tokens,
        options=section.options,
        run=record,
    )


def _write(record: RunRecord, folder: Path) -> None:
    """The record, and the report on it."""
    record.write(folder)
    write_report(folder, record)


def _record(prepared: Prepared, store: Store, tokens: Tokens) -> RunRecord:
    """What is known once the store is finished."""
    layers = store.records()
    other = prepared.plan.other_bytes
    before = sum(layer.bytes_before for layer in layers)
    after = sum(layer.bytes_after for layer in layers)
    return RunRecord(
        name=prepared.recipe.name or Path(prepared.recipe.output).name,
        source=prepared.source.identity,
        source_path=str(prepared.source.path),
        store_key=store.key,
        seed=prepared.recipe.seed,
        device=prepared.device,
        versions=versions(),
        corpora=tokens.corpora,
        parameters=Quantity(
            before=sum(layer.shape[0] * layer.shape[1] for layer in layers),
            after=sum(layer.as_plan().parameters for layer in layers),
        ),
        layer_bytes=Quantity(before=before, after=after),
        total_bytes=Quantity(before=before + other, after=after + other),
        stages=(),
        layers=tuple(layers),
        warnings=_warnings(prepared, store),
    )


def _warnings(prepared: Prepared, store: Store) -> tuple[str, ...]:
    """What is to know of the source, then every layer that could not be compressed as planned."""
    setbacks = {**prepared.pinned, **store.setbacks}
    warnings = [*prepared.warnings]
    warnings += [
        f"{layer.name} {_kept(layer, store.float_type)}: {layer.reason}"
        for layer in prepared.plan.with_layers(setbacks)
        if layer.name in setbacks
    ]
    if prepared.pinned:
        count = len(prepared.pinned)
        warnings.append(f"the target was solved again around {count} of the layers")
    return tuple(warnings)


def _kept(layer: LayerPlan, float_type: FloatType) -> str:
    if layer.form == "factors":
        return f"kept its factors in {float_type}"
    if layer.changed:
        return "has codes without a correction"
    return f"stayed dense, in {float_type}"


def _with_earlier(record: RunRecord, folder: Path) -> RunRecord:
    """The record with the artefacts, and the notes on them, that are kept of an earlier one.

    Those that a run or `export` made from this very store and that still exist.
    """
    if not (folder / RUN_FILE).is_file():
        return record
    earlier = RunRecord.read(folder)
    if earlier.store_key != record.store_key:
        return record
    for artefact in earlier.artefacts:
        if (folder / artefact.folder).is_dir():
            record = record.with_artefact(artefact)
    return record


def _notes(record: RunRecord) -> list[str]:
    """What a reader of the log should know of single layers."""
    return [*record.warnings, *record.layer_notes]


def _logged(progress: Progress) -> Progress:
    """The same callback, with a line in the log when a stage ends."""

    def advance(stage: str, done: int, total: int) -> None:
        progress(stage, done, total)
        if done == total:
            logger.info("%s: %d", stage, total)

    return advance


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Also write this package's log messages to a file of the run."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
