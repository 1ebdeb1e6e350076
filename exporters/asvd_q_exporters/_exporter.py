"""What the exporters of checkpoints have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar, cast

from pydantic import BaseModel

from asvd_q_exporters._options import KERNEL_BOUNDS, CheckpointOptions, coarsest

if TYPE_CHECKING:
    from asvd_q.artefact import ParityBounds
    from asvd_q.plan import FloatType

__all__ = ["CheckpointExporter"]

_Options = TypeVar("_Options", bound=CheckpointOptions)


class CheckpointExporter(Generic[_Options]):
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
