"""Opens whatever a user points at: an artefact, a run, a store or a plain model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asvd_q.artefact import METADATA_FILE, Runner, read_metadata
from asvd_q.errors import ArtefactError
from asvd_q.evaluation.runners import artefact_runner, model_runner
from asvd_q.models import SourceModel
from asvd_q.models.context import context_length, context_of
from asvd_q.models.tokenizer import load_tokenizer
from asvd_q.records import ArtefactMetadata
from asvd_q.report.run import RunRecord
from asvd_q.store import Store, is_store, store_metadata

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["STORE", "Opened", "open_anything", "open_run_store", "read_any_metadata"]

STORE = "store"
"""Folder of the store inside a run folder."""


@dataclass(frozen=True)
class Opened:
    """A model that runs, and what goes with it.

    Attributes:
        tokenizer: its own.
        context: tokens that it was made for; None where it has no bound.
        source: the dense model that it was compressed from, where that is open already.
    """

    runner: Runner
    tokenizer: PreTrainedTokenizerBase
    context: int | None
    source: SourceModel | None = None


def open_run_store(folder: Path, model: str | None = None) -> Store:
    """The finished store of a run folder.

    Args:
        model: folder of the source model, when it is no longer where the run found it.

    Raises:
        ArtefactError: the folder is no finished run.
        StoreError: its store is damaged, or was made from another model.
    """
    if model is not None:
        return Store.open(folder / STORE, SourceModel.open(model))
    record = RunRecord.read(folder)
    source = SourceModel.open(record.source_path, revision=record.source.revision)
    return Store.open(folder / STORE, source)


def open_anything(path: Path, model: str | None = None) -> Opened:
    """Open a path in the runtime that it is made for.

    Args:
        path: an artefact, a run folder, the store inside it, or a model folder.
        model: as in `open_run_store`.

    Raises:
        ArtefactError: the path is none of those.
    """
    if (path / METADATA_FILE).is_file():
        return Opened(artefact_runner(path), load_tokenizer(path), context_of(path))
    run = path.parent if is_store(path) else path
    if is_store(run / STORE):
        store = open_run_store(run, model)
        runner = model_runner(store.source, store.replaced)
        return _opened(runner, store.source, of=store.source)
    if (path / "config.json").is_file():
        source = SourceModel.open(str(path))
        return _opened(model_runner(source, source.factors), source)
    raise ArtefactError(f"{path} {_what_is_wrong(path)}")


def _opened(runner: Runner, model: SourceModel, of: SourceModel | None = None) -> Opened:
    return Opened(runner, model.tokenizer, context_length(model.config.to_dict()), of)


def read_any_metadata(path: Path) -> ArtefactMetadata:
    """What an artefact, a store, or a run folder by its store says of itself.

    Raises:
        ArtefactError: the path is none of them.
    """
    if (path / METADATA_FILE).is_file():
        return read_metadata(path)
    for folder in (path, path / STORE):
        if is_store(folder):
            return store_metadata(folder)
    raise ArtefactError(f"{path} {_what_is_wrong(path)}")


def _what_is_wrong(path: Path) -> str:
    if not path.exists():
        return "does not exist"
    return "is neither a run folder, nor a store, nor an artefact, nor a model folder"
