"""How a quantized matrix lies in `com.microsoft::MatMulNBits`, in numbers alone.

Source: onnxruntime, docs/ContribOperators.md, "com.microsoft.MatMulNBits".
"""

from __future__ import annotations

from dataclasses import dataclass

from asvd_q.plan import QuantSpec

__all__ = ["BLOCK_SIZES", "NBitsLayout", "container_bits", "nbits_layout"]

BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Columns that may share a scale: what the operator accepts."""


@dataclass(frozen=True)
class NBitsLayout:
    """Sizes of one matrix W (out, in) in the operator.

    Attributes:
        rows: out, the operator's N.
        columns: in, the operator's K.
        bits: width of a code in the file: 2, 4 or 8.
        shift: added to every code and zero point, so that the symmetric zero point of the
            narrower codes falls on the operator's default 2^(bits−1).
        block: columns per scale in the file.
        group: columns per scale in the store; a multiple of `block`, or the whole row.
        zero_points: whether they are written; symmetric codes leave them out.
    """

    rows: int
    columns: int
    bits: int
    shift: int
    block: int
    group: int
    zero_points: bool

    @property
    def blocks(self) -> int:
        """Blocks per row, the last one padded."""
        return -(-self.columns // self.block)

    @property
    def codes_shape(self) -> tuple[int, int, int]:
        """Of `B`, uint8."""
        return (self.rows, self.blocks, self.block * self.bits // 8)

    @property
    def scales_shape(self) -> tuple[int, int]:
        """One for every block of a row."""
        return (self.rows, self.blocks)

    @property
    def zero_points_shape(self) -> tuple[int, int]:
        """Packed along the row, uint8."""
        return (self.rows, -(-self.blocks * self.bits // 8))

    def attributes(self, accuracy_level: int) -> dict[str, int]:
        """Of the node."""
        return {
            "K": self.columns,
            "N": self.rows,
            "bits": self.bits,
            "block_size": self.block,
            "accuracy_level": accuracy_level,
        }

    @property
    def gather_attributes(self) -> dict[str, int]:
        """Of a `GatherBlockQuantized` that looks up rows in the same codes."""
        return {
            "bits": self.bits,
            "block_size": self.block,
            "gather_axis": 0,
            "quantize_axis": 1,
        }

    def nbytes(self, scale_bytes: int) -> int:
        """Bytes in the file, with scales of `scale_bytes` each."""
        row = self.blocks * (self.codes_shape[2] + scale_bytes)
        if self.zero_points:
            row += self.zero_points_shape[1]
        return self.rows * row


def container_bits(bits: int) -> int:
    """The narrowest width that the operator has and that holds codes of `bits`."""
    return next(width for width in (2, 4, 8) if width >= bits)


def nbits_layout(shape: tuple[int, int], spec: QuantSpec, scale_bytes: int) -> NBitsLayout:
    """Lay out a matrix.

    Where a row has a single scale, that scale is repeated over the blocks; their size is then
    free, and the one that takes the fewest bytes is chosen (the larger of equals).

    Args:
        shape: (out, in).
        spec: of the codes.
        scale_bytes: of one scale in the file.

    Raises:
        ValueError: several groups per row, and a group size that no block has.
    """
    rows, columns = shape
    bits = container_bits(spec.bits)
    group = spec.group_width(columns)

    def layout(block: int) -> NBitsLayout:
        return NBitsLayout(
            rows=rows,
            columns=columns,
            bits=bits,
            shift=(1 << (bits - 1)) - (1 << (spec.bits - 1)),
            block=block,
            group=group,
            zero_points=not spec.symmetric,
        )

    if group >= columns:
        return min(map(layout, reversed(BLOCK_SIZES)), key=lambda one: one.nbytes(scale_bytes))
    if group not in BLOCK_SIZES:
        raise ValueError(f"group size {group} is not a power of two from 16 to 256")
    return layout(group)
