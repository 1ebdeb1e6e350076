"""How the matrices of a plan are quantized, by the names of their modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from asvd_q_exporters._options import MODULES

if TYPE_CHECKING:
    from asvd_q.plan import LayerPlan, QuantSpec, Slot
    from asvd_q.records import LayerRecord

__all__ = ["Matrix", "Setting", "common", "matrices", "settings_of"]


class Setting(NamedTuple):
    """What a loader has to know of a matrix before it reads its codes."""

    bits: int
    group_size: int
    symmetric: bool

    @classmethod
    def of(cls, spec: QuantSpec) -> Setting:
        """Of a matrix with these settings."""
        return cls(spec.bits, spec.group_size, spec.symmetric)

    def __str__(self) -> str:
        group = "one group per channel" if self.group_size == -1 else f"groups of {self.group_size}"
        return f"{self.bits} bits, {group}, {'' if self.symmetric else 'a'}symmetric"


class Matrix(NamedTuple):
    """One matrix of a layer.

    Attributes:
        module: its name in the model.
        slot: its place in the layer.
        shape: (out, in).
        spec: None in floating point.
    """

    module: str
    slot: Slot
    shape: tuple[int, int]
    spec: QuantSpec | None


def matrices(layers: Iterable[LayerPlan | LayerRecord]) -> Iterator[Matrix]:
    """All matrices, in the order in which they are applied."""
    for layer in layers:
        for slot, shape in layer.slot_shapes().items():
            yield Matrix(layer.name + MODULES[slot], slot, shape, layer.quantization[slot])


def settings_of(layers: Iterable[LayerPlan | LayerRecord]) -> dict[str, Setting]:
    """Of every quantized matrix."""
    return {
        matrix.module: Setting.of(matrix.spec)
        for matrix in matrices(layers)
        if matrix.spec is not None
    }


def common(settings: Mapping[str, Setting]) -> Setting | None:
    """The most frequent setting, the first of several; None where nothing is quantized."""
    found = Counter(settings.values()).most_common(1)
    return found[0][0] if found else None
