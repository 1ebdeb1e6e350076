"""What every format of quantized or factorised checkpoints is turned into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asvd_q.errors import ModelError
from asvd_q.models.tensors import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FLOATS", "Format", "Matrix", "Settings", "part", "require"]

FLOATS = ("F32", "F16", "BF16")
"""Types that scales are stored in."""

Settings = Mapping[str, Any]
"""What the checkpoint's configuration says of the format."""


@dataclass(frozen=True)
class Matrix:
    """A layer's weight (out, in) that several tensors of the files stand for.

    Attributes:
        layer: name of the layer in the files, which may leave out the base model's prefix.
        shape: (out, in).
        dtype: safetensors' name of the type that its values are stored in.
        parts: names of the tensors it is made from. They are not the model's own.
        load: makes it, (out, in). Raises ModelError, naming file and layer.
        bits: width of its codes; None where it has none.
        renamed: tensors of this layer under the names the files have → those of the model.
    """

    layer: str
    shape: tuple[int, int]
    dtype: str
    parts: tuple[str, ...]
    load: Callable[[], Tensor]
    bits: int | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)


Format = Callable[[Mapping[str, TensorInfo], Settings], list[Matrix]]
"""Finds the matrices that are stored in one format, from headers and small tensors alone.

Raises ModelError, naming file and layer, for one that lacks a part or whose parts do not fit.
"""


def part(tensors: Mapping[str, TensorInfo], layer: str, suffix: str, beside: str) -> TensorInfo:
    """One of a layer's tensors.

    Args:
        beside: name of a tensor of this layer that is there.

    Raises:
        ModelError: there is none.
    """
    found = tensors.get(f"{layer}.{suffix}")
    if found is None:
        raise ModelError(
            f"{tensors[beside].file}: {layer} has no {suffix} to its "
            f"{beside.removeprefix(f'{layer}.')}: the checkpoint is incomplete, copy it again"
        )
    return found


def require(holds: bool, info: TensorInfo, layer: str, wrong: str) -> None:
    """Raises ModelError, naming file and layer, where something does not hold."""
    if not holds:
        raise ModelError(f"{info.file}: {layer}: {wrong}: the checkpoint is damaged")
