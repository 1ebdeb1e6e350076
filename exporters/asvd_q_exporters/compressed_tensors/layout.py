"""Shapes and sizes of the pack-quantized format, as plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from asvd_q.plan import FloatType, LayerPlan, QuantSpec
from asvd_q_exporters._options import layer_bytes

__all__ = [
    "NARROWEST",
    "PackedLayout",
    "group_width",
    "packed_layout",
    "stored_bytes",
]

NARROWEST = 16
"""Columns of a group, at least: below that scales take more than a bit per weight."""


@dataclass(frozen=True)
class PackedLayout:
    """Shapes of the tensors that hold one matrix (out, in).

    Attributes:
        weight_packed: int32 (out, ⌈in · bits / 32⌉), each row one stream of bits, low bits first.
        weight_scale: float16 (out, groups).
        weight_shape: int64 (2,), out and in.
    """

    weight_packed: tuple[int, int]
    weight_scale: tuple[int, int]
    weight_shape: tuple[int] = (2,)

    @property
    def nbytes(self) -> int:
        """Bytes of all three tensors."""
        words, scales = self.weight_packed, self.weight_scale
        return 4 * words[0] * words[1] + 2 * scales[0] * scales[1] + 8 * self.weight_shape[0]


def group_width(columns: int, spec: QuantSpec) -> int:
    """Columns that share a scale in the file; a divisor of `columns`.

    The format has no narrower last group. Where there is one, all groups are cut into pieces of a
    width that divides both, which repeat the scale of the whole.
    """
    width = spec.group_width(columns)
    return gcd(columns, width)


def packed_layout(shape: tuple[int, int], spec: QuantSpec) -> PackedLayout:
    """Shapes for a matrix (out, in) quantized as `spec` says."""
    rows, columns = shape
    return PackedLayout(
        weight_packed=(rows, -(-columns * spec.bits // 32)),
        weight_scale=(rows, columns // group_width(columns, spec)),
    )


def stored_bytes(layer: LayerPlan, dtype: FloatType | None) -> int:
    """Bytes of a layer's matrices: packed codes, scales, shapes, and floats.

    Args:
        dtype: of the matrices that are not quantized; see `float_bytes`.
    """
    return layer_bytes(layer, dtype, lambda shape, spec: packed_layout(shape, spec).nbytes)
