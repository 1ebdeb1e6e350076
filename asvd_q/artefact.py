"""What an exporter fulfils: it turns a finished store into an artefact that a runtime reads.

How the library finds one: `asvd_q.exporter_registry`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from asvd_q.errors import ArtefactError, first_line
from asvd_q.records import ArtefactMetadata

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, LayerPlan, Plan, QuantSpec, Slot
    from asvd_q.store import Store

__all__ = [
    "METADATA_FILE",
    "WHOLE_MODEL",
    "AdvisingExporter",
    "ArtefactBytes",
    "BasicExporter",
    "BoundedExporter",
    "ExaminingExporter",
    "Exporter",
    "ParityBounds",
    "Refusal",
    "Runner",
    "SizedExporter",
    "TimedExporter",
    "parse_metadata",
    "read_metadata",
]

METADATA_FILE = "asvd_q.json"
WHOLE_MODEL = "the model"
"""In place of a layer's name, where a refusal is of no single layer."""


@dataclass(frozen=True)
class Refusal:
    """Why a format cannot hold one layer of a plan, and the nearest thing that works."""

    layer: str
    reason: str
    instead: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.reason}; {self.instead}"


@dataclass(frozen=True)
class ParityBounds:
    """How far an artefact may be from the store's own Runner, on real tokens.

    Attributes:
        relative_error: ‖logits − reference‖ / ‖reference‖ over all positions.
        kl: mean KL divergence from the reference's distribution, in nats per token.
        agreement: share of positions with the same arg max, at least. A sample of positions is
            judged by what such a share would make of it, three standard errors off.
    """

    relative_error: float
    kl: float
    agreement: float


@dataclass(frozen=True)
class ArtefactBytes:
    """Bytes of every file of an artefact, by its path in the folder; `asvd_q.json` is left out.

    Attributes:
        weights: files that hold tensors.
        others: configuration, tokenizer, code.
    """

    weights: Mapping[str, int]
    others: Mapping[str, int]


class Runner(Protocol):
    """A model that turns token ids into logits, in whatever runtime it lives in."""

    runtime: str
    """What computes the logits, with its version: "torch 2.13.0", "onnxruntime 1.31.1 CPU"."""

    def forward(
        self, input_ids: Tensor, cache: Any = None, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Logits of the given tokens, and the cache with those tokens appended.

        Args:
            input_ids: int64 (batch, tokens), on the CPU.
            cache: what an earlier call returned; None starts a sequence.
            attention_mask: int64 (batch, tokens so far), those of this call included: 0 for
                padding, which is on the left of a row and at most up to its last token, and 1
                for the rest. Given with a sequence's first tokens, it is given with all others.
                A row's logits are those of its tokens alone; those of padding mean nothing.
                None: there is no padding.

        Returns:
            float32 logits (batch, tokens, vocabulary) on the CPU, and the new cache, which is
            opaque to the caller. Whether the old cache object stays usable is not promised.
        """
        ...

    def score(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Logits of many independent batches, in order.

        A runner that streams its weights does all batches in one pass over the model.
        """
        ...


class Exporter(Protocol):
    """One output format.

    Built with its validated options: `exporter_class(name)(options)`.
    """

    name: ClassVar[str]
    options_model: ClassVar[type[BaseModel]]
    options: BaseModel
    bounds: ParityBounds
    float_type: FloatType | None
    """Type that unquantized matrices are rounded to; None keeps the store's."""

    def __init__(self, options: BaseModel) -> None: ...

    def can_express(self, plan: Plan) -> list[Refusal]:
        """What of this plan the format cannot hold; an empty list when it can hold it all.

        Pure: asked before hours of work, and loads neither torch nor a runtime.
        """
        ...

    def stored_bytes(self, layer: LayerPlan) -> int:
        """Bytes that this layer's matrices (without bias) will occupy in the artefact.

        Scales, zero points, index tensors and alignment included: what allocation counts.
        """
        ...

    def write(self, store: Store, folder: Path) -> None:
        """Write the artefact into `folder`, an existing empty directory.

        Reads only the store and, through `store.source`, the source model's untouched tensors
        and tokenizer. Converts codes; never quantizes again. Writes no metadata file: the caller
        does that, except what the format itself wants inside its own files.

        Raises:
            ExportError: naming the layer that cannot be written.
        """
        ...

    def open(self, folder: Path) -> Runner:
        """Load the artefact in its real runtime.

        Raises:
            MissingExtraError: the runtime is not installed.
        """
        ...

    def read(self, folder: Path) -> Iterator[tuple[str, Mapping[Slot, Tensor]]]:
        """Recover every layer's matrices from the bytes, as float32 (out, in), layer by layer.

        Shares no code with `write`: with numpy and the format's specification alone. Yields
        (layer name, slot → matrix) for every layer of the artefact's records.
        """
        ...


@runtime_checkable
class AdvisingExporter(Protocol):
    """What an exporter has besides, that knows what a user of its artefact should know."""

    def notes(self, plan: Plan) -> list[str]:
        """Limits of an artefact of this plan that are no refusals; an empty list when none.

        Which loaders misread it, what runs only slowly, and what would change that: one sentence
        each, naming layers. Pure: loads neither torch nor a runtime.

        Args:
            plan: one that the format can hold.
        """
        ...


@runtime_checkable
class BoundedExporter(Protocol):
    """What an exporter has besides, whose artefacts agree better for some plans than for others."""

    def bounds_of(self, plan: Plan) -> ParityBounds:
        """What an artefact of this plan is held to, in the place of `bounds`.

        Args:
            plan: one that the format can hold.
        """
        ...


@runtime_checkable
class ExaminingExporter(Protocol):
    """What an exporter has besides, that cannot hold every architecture."""

    def refusal_of(self, source: SourceModel) -> Refusal | None:
        """Why the format cannot hold a model, whatever its plan; None where nothing is known.

        Asked before hours of work, so it reads no weights and takes seconds at most.
        """
        ...


@runtime_checkable
class SizedExporter(Protocol):
    """What an exporter has besides, that knows its files before there is a store.

    Of any other, the layers' `stored_bytes` and the tensors that no layer covers are added up.
    """

    def artefact_bytes(self, plan: Plan, source: SourceModel) -> ArtefactBytes:
        """What `write` will write of a store with this plan; reads headers of weights alone.

        Raises:
            ExportError: naming the layer that cannot be written.
        """
        ...


@runtime_checkable
class TimedExporter(Protocol):
    """What an exporter has besides, whose runtime can be timed on the machine at hand."""

    @property
    def runtime(self) -> str:
        """What would be timed, with its version: "onnxruntime 1.31.1 CPU"; loads no runtime."""
        ...

    def kernel(self, shape: tuple[int, int], spec: QuantSpec | None) -> str:
        """What computes with a matrix (out, in); those of one kernel take the same time.

        Pure: loads neither torch nor a runtime.

        Args:
            spec: of its codes; None for a matrix in floating point. One that the format can hold.
        """
        ...

    def decode_seconds(
        self, matrices: Sequence[tuple[tuple[int, int], QuantSpec | None]]
    ) -> list[float]:
        """Measured seconds, above 0, of one decoded token through each matrix: batch 1, one row.

        In the real runtime, set up as for an artefact, with random weights. What is there besides
        the matrix is left out. Kernels that several matrices share are measured once.

        Args:
            matrices: as `kernel` takes them.
        """
        ...


class NoOptions(BaseModel):
    """Of a format that has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BasicExporter:
    """A beginning for an exporter: what is missing is `name`, `stored_bytes` and the three verbs.

    It has no options, holds every plan, keeps floating-point matrices in the store's type, and is
    to agree with the store's Runner as one torch model in float32 does with another.
    """

    options_model: ClassVar[type[BaseModel]] = NoOptions
    bounds = ParityBounds(relative_error=1e-5, kl=1e-6, agreement=0.99)
    float_type: FloatType | None = None

    def __init__(self, options: BaseModel | None = None) -> None:
        self.options = self.options_model() if options is None else options

    def can_express(self, plan: Plan) -> list[Refusal]:
        """See `Exporter`."""
        return []


def read_metadata(folder: Path) -> ArtefactMetadata:
    """`asvd_q.json` of an artefact folder.

    Raises:
        ArtefactError: no such file, or it is damaged.
    """
    path = folder / METADATA_FILE
    if not path.is_file():
        raise ArtefactError(f"{folder} is not an asvd-q artefact: it has no {METADATA_FILE}")
    return parse_metadata(path.read_bytes(), str(path))


def parse_metadata(content: bytes | str, place: str) -> ArtefactMetadata:
    """What an artefact says of itself, as JSON.

    Args:
        place: where it was found, for the message.

    Raises:
        ArtefactError: it is damaged.
    """
    try:
        return ArtefactMetadata.model_validate_json(content)
    except ValueError as error:
        raise ArtefactError(
            f"{place} is damaged or of another version; export it again: {first_line(error)}"
        ) from error
