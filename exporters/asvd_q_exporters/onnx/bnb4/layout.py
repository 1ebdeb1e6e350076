"""How an NF4 matrix lies in `com.microsoft::MatMulBnb4`, in numbers alone.

Source: onnxruntime, docs/ContribOperators.md, "com.microsoft.MatMulBnb4".
"""

from __future__ import annotations

from dataclasses import dataclass

from asvd_q.plan import QuantSpec

__all__ = ["BLOCK_SIZES", "NF4", "Bnb4Layout", "bnb4_layout"]

BLOCK_SIZES = (32, 64, 128, 256)
"""Weights that may share a scale: what both the operator and bitsandbytes have."""

NF4 = 1
"""The operator's `quant_type`; 0 is FP4."""

_MOST_WEIGHTS = 2**31 - 1


@dataclass(frozen=True)
class Bnb4Layout:
    """Sizes of one matrix W (out, in) in the operator: one run of codes, row after row.

    Attributes:
        rows: out, the operator's N.
        columns: in, the operator's K.
        block: consecutive weights per scale; blocks cross rows, and the last may be short.
    """

    rows: int
    columns: int
    block: int

    @property
    def packed_shape(self) -> tuple[int]:
        """Bytes: two codes in each, the first in the high half."""
        return (-(-self.rows * self.columns // 2),)

    @property
    def absmax_shape(self) -> tuple[int]:
        """Scales in float32."""
        return (-(-self.rows * self.columns // self.block),)

    @property
    def attributes(self) -> dict[str, int]:
        """Of the node."""
        return {
            "K": self.columns,
            "N": self.rows,
            "block_size": self.block,
            "quant_type": NF4,
        }

    @property
    def nbytes(self) -> int:
        """Of codes and scales."""
        return self.packed_shape[0] + 4 * self.absmax_shape[0]

    @property
    def countable(self) -> bool:
        """Whether ONNX Runtime, which counts weights in int32, reads them; else it reads none."""
        return self.rows * self.columns + self.block - 1 <= _MOST_WEIGHTS


def bnb4_layout(shape: tuple[int, int], spec: QuantSpec) -> Bnb4Layout:
    """Lay out a matrix (out, in)."""
    return Bnb4Layout(rows=shape[0], columns=shape[1], block=spec.group_size)
