"""The dense model that a compressed one is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asvd_q.artefact import METADATA_FILE, read_metadata
from asvd_q.errors import ModelError
from asvd_q.models import SourceModel
from asvd_q.opening import Opened
from asvd_q.report.run import RUN_FILE, RunRecord

__all__ = ["NONE", "Reference", "find_reference"]

NONE = "none"
"""Wanted by whoever wants no comparison."""


@dataclass(frozen=True)
class Reference:
    """What there is to compare with.

    Attributes:
        source: the dense model; None where there is none.
        note: why not, and what to do, where one was looked for.
    """

    source: SourceModel | None = None
    note: str | None = None


def find_reference(
    path: Path, opened: Opened, *, model: str | None = None, wanted: str | None = None
) -> Reference:
    """The dense model of what `open_anything` opened.

    That of a run or store is the source it was opened with; that of an artefact is `model`, or
    the source of the run folder that it lies in, and has the weights that the artefact was made
    from. A model folder is dense itself.

    Args:
        model: as in `open_anything`.
        wanted: folder or hub name of any model, to be taken instead; `none` for no comparison.

    Raises:
        ModelError: `wanted` or `model` cannot be opened, `model` is not the artefact's, or
            `wanted` lacks tokens of the vocabulary.
    """
    if wanted == NONE:
        return Reference()
    if wanted is not None:
        chosen = SourceModel.open(wanted)
        size, needed = int(chosen.config.vocab_size), len(opened.tokenizer)
        if size < needed:
            raise ModelError(
                f"--reference {wanted} has a vocabulary of {size} tokens, and the tokenizer of "
                f"{path} has {needed}: give a model that reads the same tokens"
            )
        return Reference(chosen)
    if opened.source is not None or not (path / METADATA_FILE).is_file():
        return Reference(opened.source)
    run = path.resolve().parent.parent
    if model is not None:
        source = SourceModel.open(model)
        if not _made_from(path, source):
            raise ModelError(
                f"--model {model}: its weights are not those that {path} was made from; any other "
                "model is compared with --reference"
            )
        return Reference(source)
    if not (run / RUN_FILE).is_file():
        return Reference(note=_without(f"{path} lies in no run folder"))
    record = RunRecord.read(run)
    try:
        source = SourceModel.open(record.source_path, revision=record.source.revision)
    except ModelError:
        return Reference(note=_without(f"{record.source_path} is not there any more"))
    if not _made_from(path, source):
        return Reference(note=_without(f"{record.source_path} has other weights by now"))
    return Reference(source)


def _made_from(path: Path, source: SourceModel) -> bool:
    return read_metadata(path).source.weights_sha256 == source.identity.weights_sha256


def _without(reason: str) -> str:
    return f"not compared with the dense model: {reason}; say where it is with --model"
