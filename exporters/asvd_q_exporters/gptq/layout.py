"""Shapes and sizes of the GPTQ format, as plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from asvd_q.plan import FloatType, LayerPlan, QuantSpec
from asvd_q_exporters._options import layer_bytes

__all__ = [
    "BITS",
    "GROUP_SIZES",
    "MULTIPLE",
    "PackedLayout",
    "packed_layout",
    "stored_bytes",
]

BITS = (2, 3, 4, 8)
"""Widths that transformers and optimum accept."""

GROUP_SIZES = (-1, 16, 32, 64, 128, 256)
"""Those that gptqmodel's portable kernel takes, as far as `QuantSpec` allows them."""

MULTIPLE = 32
"""Both sides of a matrix are multiples of this, so that every row of codes fills whole words."""


@dataclass(frozen=True)
class PackedLayout:
    """Shapes of the tensors that hold one matrix (out, in), N = out and K = in.

    Attributes:
        qweight: int32 (K · bits / 32, N), codes packed along K, low bits first.
        qzeros: int32 (groups, N · bits / 32), zero points packed along N.
        scales: float16 (groups, N).
        g_idx: int32 (K,), the group of every input channel.
    """

    qweight: tuple[int, int]
    qzeros: tuple[int, int]
    scales: tuple[int, int]
    g_idx: tuple[int]

    @property
    def nbytes(self) -> int:
        """Bytes of all four tensors."""
        words = self.qweight[0] * self.qweight[1] + self.qzeros[0] * self.qzeros[1]
        return 4 * (words + self.g_idx[0]) + 2 * self.scales[0] * self.scales[1]


def packed_layout(shape: tuple[int, int], spec: QuantSpec) -> PackedLayout:
    """Shapes for a matrix (out, in) quantized as `spec` says.

    Symmetric codes bring their zero points too: the format has no way to leave them out.
    """
    rows, columns = shape
    groups = spec.groups(columns)
    return PackedLayout(
        qweight=(-(-columns * spec.bits // 32), rows),
        qzeros=(groups, -(-rows * spec.bits // 32)),
        scales=(groups, rows),
        g_idx=(columns,),
    )


def stored_bytes(layer: LayerPlan, dtype: FloatType | None) -> int:
    """Bytes of a layer's matrices: packed codes, zero points, scales, g_idx, and floats.

    Args:
        dtype: of the matrices that are not quantized; see `float_bytes`.
    """
    return layer_bytes(layer, dtype, lambda shape, spec: packed_layout(shape, spec).nbytes)
