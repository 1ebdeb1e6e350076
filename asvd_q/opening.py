"""Opens whatever a user points at: an artefact, a run, a store or a plain model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asvd_q.artefact import METADATA_FILE, Runner, read_metadata
from asvd_q.errors import ArtefactError
from asvd_q.evaluation.runners import artefact_runner, model_runner
from asvd_q.models import SourceModel
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
    """A model that runs, and the tokenizer that goes with it."""

    runner: Runner
    tokenizer: PreTrainedTokenizerBase


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
        return Opened(artefact_runner(path), load_tokenizer(path))
    run = path.parent if is_store(path) else path
    if is_store(run / STORE):
        store = open_run_store(run, model)
        return Opened(model_runner(store.source, store.replaced), store.source.tokenizer)
    if (path / "config.json").is_file():
        source = SourceModel.open(str(path))
        return Opened(model_runner(source, source.factors), source.tokenizer)
    raise ArtefactError(f"{path} {_what_is_wrong(path)}")


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
