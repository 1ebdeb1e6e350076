"""What the exporters of checkpoints have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar, cast

from pydantic import BaseModel

from asvd_q.artefact import Refusal
from asvd_q.errors import ExportError, MissingExtraError
from asvd_q_exporters._options import KERNEL_BOUNDS, CheckpointOptions, coarsest

if TYPE_CHECKING:
    from asvd_q.artefact import ArtefactBytes, ParityBounds
    from asvd_q.models import SourceModel
    from asvd_q.plan import FloatType, Plan
    from asvd_q.store import Store
    from asvd_q_exporters._checkpoint import CheckpointFormat

__all__ = ["CheckpointExporter", "TypedExporter", "require_packages"]

_Options = TypeVar("_Options", bound=CheckpointOptions)


class TypedExporter(ABC, Generic[_Options]):
    """Options, and what follows from the types among them.

    Attributes:
        measured: bounds of the format's runtime, by the coarsest of those types.

    Raises:
        TypeError: options of another format.
    """

    name: ClassVar[str]
    options_model: ClassVar[type[BaseModel]]
    measured: ClassVar[Mapping[FloatType, ParityBounds]] = KERNEL_BOUNDS

    def __init__(self, options: BaseModel | None = None) -> None:
        chosen = self.options_model() if options is None else options
        if not isinstance(chosen, self.options_model):
            expected = self.options_model.__name__
            raise TypeError(f"options of {self.name} are {expected}, not {type(chosen)}")
        self.options = cast(_Options, chosen)
        self.float_type: FloatType | None = self.options.dtype
        coarse = coarsest(self.options.dtype, self.options.compute_dtype)
        self.bounds: ParityBounds = self.measured[coarse]

    @abstractmethod
    def can_express(self, plan: Plan) -> list[Refusal]:
        """See `asvd_q.artefact.Exporter`."""

    def require(self, plan: Plan) -> None:
        """Raises ExportError, with the first refusal, when the format cannot hold the plan."""
        refusals = self.can_express(plan)
        if refusals:
            raise ExportError(str(refusals[0]))


class CheckpointExporter(TypedExporter[_Options]):
    """Writes one folder that is a Hugging Face checkpoint."""

    @abstractmethod
    def format_of(self, plan: Plan, source: SourceModel, float_type: FloatType) -> CheckpointFormat:
        """How the format holds a plan of this model.

        Args:
            float_type: of everything that is not quantized.

        Raises:
            ExportError: naming the layer that it cannot hold.
        """

    def artefact_bytes(self, plan: Plan, source: SourceModel) -> ArtefactBytes:
        """See `asvd_q.artefact.SizedExporter`."""
        from asvd_q_exporters._checkpoint import checkpoint_bytes

        dtype = self.float_type or plan.float_type
        return checkpoint_bytes(plan, source, self.format_of(plan, source, dtype), float_type=dtype)

    def write(self, store: Store, folder: Path) -> None:
        """Write weights, configuration, tokenizer and, with low-rank layers, the modelling file.

        Raises:
            ExportError: naming the layer that the format cannot hold.
        """
        from asvd_q_exporters._checkpoint import write_checkpoint

        plan = store.finished_plan
        self.require(plan)
        dtype = self.float_type or store.float_type
        write_checkpoint(store, folder, self.format_of(plan, store.source, dtype), float_type=dtype)


def require_packages(extra: str, purpose: str, *packages: str) -> None:
    """Raises MissingExtraError for the first package that is not installed.

    Args:
        extra: of asvd-q, which brings them.
        purpose: what they are needed for, as the end of a sentence.
    """
    for package in packages:
        if find_spec(package.replace("-", "_")) is None:
            raise MissingExtraError(package, extra, purpose)
