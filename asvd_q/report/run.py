"""`run.json`: everything there is to know about a run."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asvd_q import __version__
from asvd_q.errors import ArtefactError, first_line
from asvd_q.evaluation.assess import Assessed
from asvd_q.evaluation.proof import Proof
from asvd_q.evaluation.quality import Quality
from asvd_q.evaluation.tasks.record import TaskResult
from asvd_q.files import write_text
from asvd_q.records import Footprint, LayerRecord, SourceIdentity
from asvd_q.report.resources import StageRecord

__all__ = ["RUN_FILE", "ArtefactRecord", "CorpusRecord", "Quantity", "RunRecord", "versions"]

RUN_FILE = "run.json"

_PACKAGES = (
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optimum",
    "bitsandbytes",
    "gptqmodel",
    "compressed-tensors",
    "lm-eval",
)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CorpusRecord(_Frozen):
    """A text that was read: which, and the hash of it."""

    corpus: str
    split: str
    use: Literal["calibration", "evaluation"]
    sha256: str


class Quantity(_Frozen):
    """A size before and after, in bytes of the store's count or parameters."""

    before: int
    after: int

    @property
    def ratio(self) -> float:
        """After / before; 1 of nothing."""
        return self.after / self.before if self.before else 1.0


class ArtefactRecord(_Frozen):
    """One exported artefact: where it lies in the run folder, how large, how well proven.

    Attributes:
        bytes: of all its files but its model card, which tells them.
        weight_bytes: of those that hold tensors.
        predicted: both as the plan said, before there was a store.
        options: of its format, every default written out. It was proven with them, so that they
            say what the proof's numbers are of: for ONNX, whether activations were rounded.
            Runs of versions that did not keep them have none.
        notes: what whoever loads it should know.
    """

    name: str
    format: str
    folder: str
    bytes: int
    weight_bytes: int
    predicted: Footprint
    proof: Proof
    options: dict[str, Any] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The notes, as the run's warnings have them."""
        return tuple(f"{self.name}: {note}" for note in self.notes)


class RunRecord(_Frozen):
    """The run's result, written when it ends.

    Attributes:
        source, store_key, seed: what was compressed, into which store.
        source_path: where the model lay.
        versions: of Python and of every package that had a part in the result.
        parameters: of the layers looked at.
        layer_bytes, total_bytes: in the store's count; the total has everything.
        quality: of the compressed model; `dense_quality` of the source on the same tokens.
        tasks: of the compressed model; `dense_tasks` of the source.
    """

    version: Literal[1] = 1
    name: str
    source: SourceIdentity
    source_path: str
    store_key: str
    seed: int
    device: str
    versions: dict[str, str]
    corpora: tuple[CorpusRecord, ...]
    parameters: Quantity
    layer_bytes: Quantity
    total_bytes: Quantity
    stages: tuple[StageRecord, ...]
    layers: tuple[LayerRecord, ...]
    dense_quality: tuple[Quality, ...] = ()
    quality: tuple[Quality, ...] = ()
    dense_tasks: tuple[TaskResult, ...] = ()
    tasks: tuple[TaskResult, ...] = ()
    artefacts: tuple[ArtefactRecord, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def assessed(self) -> tuple[Assessed, ...]:
        """The quality on every text, with the dense model's where that was measured."""
        dense = {(one.corpus, one.split): one for one in self.dense_quality}
        return tuple(Assessed(one, dense.get((one.corpus, one.split))) for one in self.quality)

    @property
    def layer_notes(self) -> tuple[str, ...]:
        """What a reader should know of single layers, each with its name."""
        return tuple(f"{layer.name}: {note}" for layer in self.layers for note in layer.notes)

    @property
    def bits_per_weight(self) -> float:
        """Bytes of the layers in the store's count, by the weights that they had before."""
        return 8 * self.layer_bytes.after / max(self.parameters.before, 1)

    def with_artefact(self, artefact: ArtefactRecord) -> RunRecord:
        """The record with an artefact added, or put in the place of the one of its name.

        The notes on it are among the warnings.
        """
        others = tuple(found for found in self.artefacts if found.name != artefact.name)
        replaced = {
            warning
            for found in self.artefacts
            if found.name == artefact.name
            for warning in found.warnings
        }
        kept = (warning for warning in self.warnings if warning not in replaced)
        return self.model_copy(
            update={
                "artefacts": (*others, artefact),
                "warnings": (*kept, *artefact.warnings),
            }
        )

    def write(self, folder: Path) -> None:
        """Replace the record in a run folder."""
        write_text(folder / RUN_FILE, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """The record of a finished run.

        Raises:
            ArtefactError: there is none, or it is damaged.
        """
        path = folder / RUN_FILE
        if not path.is_file():
            raise ArtefactError(f"{folder} is not a finished run: it has no {RUN_FILE}")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ArtefactError(
                f"{path} is damaged or of another version: {first_line(error)}"
            ) from error


def versions() -> dict[str, str]:
    """Versions of everything that has a part in the result."""
    found = {
        "asvd-q": __version__,
        "python": sys.version.split()[0],
        "platform": platform.machine(),
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
