"""The order of the stages. Thin: every stage lives in a room of its own."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from asvd_q import __version__
from asvd_q.artefact import Exporter
from asvd_q.compression import Calibration, Progress, check_weights, compress
from asvd_q.errors import ResourceError
from asvd_q.evaluation.quality import Quality, TokenWindows, compare_quality, evaluate_quality
from asvd_q.evaluation.runners import model_runner
from asvd_q.evaluation.texts import evaluation_texts, proof_tokens
from asvd_q.exporting import export_store, make_exporter, require_expressible
from asvd_q.files import make_folder, require_disk, write_text
from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.skeleton import Skeleton, build_skeleton
from asvd_q.opening import STORE, open_run_store
from asvd_q.plan import FloatType, Plan
from asvd_q.quantization import TORCH_TYPES, float_type_of
from asvd_q.recipe import ExportSection, Recipe
from asvd_q.report.resources import StageMeter
from asvd_q.report.run import ArtefactRecord, CorpusRecord, Quantity, RunRecord, versions
from asvd_q.search import make_plan
from asvd_q.statistics.corpora import load_corpus
from asvd_q.statistics.windows import calibration_windows
from asvd_q.store import Store, StoreHeader

__all__ = ["RECIPE_FILE", "Prepared", "export_run", "prepare", "run"]

RECIPE_FILE = "recipe.yaml"
_LOG_FILE = "log.txt"
_SCRATCH = "hidden_states"

logger = logging.getLogger("asvd_q")


@dataclass(frozen=True)
class Prepared:
    """A recipe and its model, looked at and not touched."""

    recipe: Recipe
    source: SourceModel
    skeleton: Skeleton
    plan: Plan
    exports: tuple[tuple[ExportSection, Exporter], ...]
    device: str


def prepare(recipe: Recipe) -> Prepared:
    """Open the model, make the plan, build the exporters. Reads no weights.

    Raises:
        AsvdQError: whatever is wrong with the recipe or the model.
    """
    source = SourceModel.open(
        recipe.model.path,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    skeleton = build_skeleton(source)
    dtype: FloatType = (
        float_type_of(source.dtype) if recipe.model.dtype == "auto" else recipe.model.dtype
    )
    exports = tuple(
        (
            section,
            make_exporter(
                section.format, section.options, where=f"export.{index}", file="the recipe"
            ),
        )
        for index, section in enumerate(recipe.export)
    )
    return Prepared(
        recipe=recipe,
        source=source,
        skeleton=skeleton,
        plan=make_plan(recipe, source, skeleton, dtype),
        exports=exports,
        device=_device(recipe),
    )


def run(recipe: Recipe, progress: Progress, *, fresh: bool = False) -> RunRecord:
    """Carry out a recipe, or go on with it where an earlier run of it stopped.

    Args:
        progress: called as work goes on.
        fresh: throw away what an earlier run left in the output folder.

    Returns:
        The record that is also written to `run.json`.
    """
    folder, meter = Path(recipe.output), StageMeter()
    with meter.stage("prepare"):
        prepared = prepare(recipe)
        for _, exporter in prepared.exports:
            require_expressible(exporter, prepared.plan)
        if fresh and (folder / RECIPE_FILE).is_file():
            shutil.rmtree(folder)
        make_folder(folder)
        _check_disk(prepared, folder)
        windows, corpora = _calibration_windows(prepared)
        texts = _texts(prepared)
        corpora += [_corpus_record(text) for text in texts]
    with _log_to(folder / _LOG_FILE):
        with meter.stage("compress"):
            store = _compress(prepared, folder, windows, progress)
        with meter.stage("evaluate"):
            dense, quality = _evaluate(prepared, store, texts, progress)
        tokens = proof_tokens(prepared.source, texts, windows)
        artefacts = []
        for done, (section, exporter) in enumerate(prepared.exports):
            progress(f"exporting {section.name}", done, len(prepared.exports))
            with meter.stage(f"export {section.name}"):
                artefacts.append(_export(store, exporter, section, folder, tokens))
        if prepared.exports:
            progress("exporting", len(prepared.exports), len(prepared.exports))
        record = _record(prepared, store, meter, corpora)
        record = record.model_copy(
            update={
                "dense_quality": tuple(dense),
                "quality": tuple(quality),
                "artefacts": tuple(artefacts),
            }
        )
        record.write(folder)
        logger.info("finished: %s", folder)
    return record


def export_run(folder: Path, section: ExportSection, model: str | None = None) -> ArtefactRecord:
    """Add another artefact to a finished run; nothing is compressed again.

    Args:
        model: as in `open_run_store`.
    """
    exporter = make_exporter(section.format, section.options, where="--option", file="export")
    store = open_run_store(folder, model)
    artefact = _export(store, exporter, section, folder, proof_tokens(store.source, [], None))
    record = RunRecord.read(folder)
    others = tuple(found for found in record.artefacts if found.name != artefact.name)
    record.model_copy(update={"artefacts": (*others, artefact)}).write(folder)
    return artefact


def _device(recipe: Recipe) -> str:
    available = torch.cuda.is_available()
    if recipe.device == "cuda" and not available:
        raise ResourceError("device: cuda is asked for and torch finds no GPU; use auto or cpu")
    if recipe.device == "auto":
        return "cuda" if available else "cpu"
    return recipe.device


def _check_disk(prepared: Prepared, folder: Path) -> None:
    """Codes take a byte each in the store; an artefact is at most the model in float32."""
    parameters = sum(info.numel for info in prepared.source.tensors.values())
    require_disk(folder, parameters * (1 + 4 * len(prepared.exports)))


def _calibration_windows(prepared: Prepared) -> tuple[Tensor | None, list[CorpusRecord]]:
    section = prepared.recipe.calibration
    if section is None:
        return None, []
    corpora = [load_corpus(corpus) for corpus in section.corpora]
    windows = calibration_windows(
        [(text, corpus.weight) for text, corpus in zip(corpora, section.corpora, strict=True)],
        prepared.source.tokenizer,
        samples=section.samples,
        window=section.window,
        seed=section.seed,
        bos=section.bos,
    )
    return windows, [
        CorpusRecord(corpus=text.name, split=text.split, use="calibration", sha256=text.sha256)
        for text in corpora
    ]


def _texts(prepared: Prepared) -> list[TokenWindows]:
    section = prepared.recipe.evaluate
    return [] if section is None else evaluation_texts(section, prepared.source.tokenizer)


def _corpus_record(text: TokenWindows) -> CorpusRecord:
    return CorpusRecord(corpus=text.corpus, split=text.split, use="evaluation", sha256=text.sha256)


def _compress(
    prepared: Prepared, folder: Path, windows: Tensor | None, progress: Progress
) -> Store:
    recipe, source = prepared.recipe, prepared.source
    model = BlockwiseModel(
        source,
        device=prepared.device,
        dtype=TORCH_TYPES[recipe.compute_dtype],
        skeleton=prepared.skeleton,
    )
    header = StoreHeader(
        key=_store_key(prepared, windows),
        asvd_q=__version__,
        source=source.identity,
        plan=prepared.plan,
    )
    if not (folder / STORE).is_dir():
        check_weights(model, progress)
    store = Store.create(folder / STORE, header, source)
    write_text(folder / RECIPE_FILE, recipe.resolved_yaml())
    with _scratch(prepared, folder) as scratch:
        calibration = None
        if windows is not None and recipe.calibration is not None:
            calibration = Calibration(windows, recipe.calibration.batch_size, scratch)
        compress(model, store, section=recipe.decompose, calibration=calibration, progress=progress)
    return Store.open(folder / STORE, source)


@contextmanager
def _scratch(prepared: Prepared, folder: Path) -> Iterator[Path | None]:
    """A folder for hidden states while the loop runs, if the recipe wants them on disk."""
    section = prepared.recipe.calibration
    if section is None or section.hidden_states == "memory":
        yield None
        return
    scratch = folder / _SCRATCH
    make_folder(scratch)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _store_key(prepared: Prepared, windows: Tensor | None) -> str:
    """Hash of everything that the stored bytes depend on."""
    tokens = None if windows is None else hashlib.sha256(windows.numpy().tobytes()).hexdigest()
    content = {
        "asvd_q": __version__,
        "torch": torch.__version__,
        "device": prepared.device,
        "weights": prepared.source.identity.weights_sha256,
        "plan": prepared.plan.model_dump(mode="json"),
        "recipe": prepared.recipe.compression_fields(),
        "tokens": tokens,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _evaluate(
    prepared: Prepared, store: Store, texts: list[TokenWindows], progress: Progress
) -> tuple[list[Quality], list[Quality]]:
    """Quality of the dense model (if the recipe wants it) and of the store, text by text."""
    section = prepared.recipe.evaluate
    if section is None:
        return [], []
    device, dtype = prepared.device, TORCH_TYPES[prepared.recipe.compute_dtype]
    runner = model_runner(prepared.source, store.replaced, device=device, dtype=dtype)
    reference = model_runner(prepared.source, device=device, dtype=dtype) if section.dense else None
    dense, quality = [], []
    for text in texts:

        def advance(done: int, total: int, stage: str = f"evaluating on {text.corpus}") -> None:
            progress(stage, done, total)

        if reference is None:
            found = evaluate_quality(runner, text, batch_size=section.batch_size, progress=advance)
        else:
            before, found = compare_quality(
                reference, runner, text, batch_size=section.batch_size, progress=advance
            )
            dense.append(before)
        quality.append(found)
    return dense, quality


def _export(
    store: Store, exporter: Exporter, section: ExportSection, folder: Path, tokens: Tensor
) -> ArtefactRecord:
    return export_store(
        store,
        exporter,
        name=section.name,
        run_folder=folder,
        tokens=tokens,
        options=section.options,
    )


def _record(
    prepared: Prepared, store: Store, meter: StageMeter, corpora: list[CorpusRecord]
) -> RunRecord:
    layers = store.records()
    planned = {layer.name: layer for layer in prepared.plan}
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
        corpora=tuple(corpora),
        parameters=Quantity(
            before=sum(layer.shape[0] * layer.shape[1] for layer in layers),
            after=sum(layer.as_plan().parameters for layer in layers),
        ),
        layer_bytes=Quantity(before=before, after=after),
        total_bytes=Quantity(before=before + other, after=after + other),
        stages=tuple(meter.records),
        layers=tuple(layers),
        warnings=tuple(
            f"{layer.name} stayed dense: {layer.reason}"
            for layer in layers
            if layer.form != planned[layer.name].form
        ),
    )


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
