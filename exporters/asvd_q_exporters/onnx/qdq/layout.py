"""How a quantized matrix lies in `DequantizeLinear`, in numbers alone.

The matrix is stored as (in, out), so that `MatMul` reads what comes out as it is: ONNX Runtime
replaces that pair by `MatMulNBits` when it loads the file, and leaves one with a `Transpose`
between as it is.

Source: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html, versions 21 and up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from asvd_q.plan import QuantSpec

__all__ = ["BLOCK_SIZES", "LEAST_OPSET", "CodeType", "QdqLayout", "fitting_block", "qdq_layout"]

BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Columns that may share a scale: ONNX Runtime has a kernel for these, and dequantizes the whole
matrix for every token where a block is another. `DequantizeLinear` itself would take any."""

LEAST_OPSET = 21
"""The first with blocks, and with types of 4 bits."""

CodeType = Literal["int4", "uint4", "int8", "uint8"]


@dataclass(frozen=True)
class QdqLayout:
    """Sizes of one matrix W (out, in) in the operator.

    Attributes:
        rows: out.
        columns: in.
        bits: width of a code in the file: 4 or 8.
        offset: taken off every code, so that symmetric ones have their zero point at 0.
        block: columns per scale in the file; None for one scale per row.
        group: columns per scale in the store: a multiple of `block`, or the whole row.
        zero_points: whether they are written; symmetric codes leave them out.
    """

    rows: int
    columns: int
    bits: int
    offset: int
    block: int | None
    group: int
    zero_points: bool

    @property
    def code_type(self) -> CodeType:
        """Signed without zero points, the only form TensorRT reads; else unsigned.

        ONNX Runtime and OpenVINO read both. The latter computes with int8 activations for
        unsigned codes with zero points and not for signed ones.
        """
        signed: CodeType = "int4" if self.bits == 4 else "int8"
        unsigned: CodeType = "uint4" if self.bits == 4 else "uint8"
        return unsigned if self.zero_points else signed

    @property
    def codes_shape(self) -> tuple[int, int]:
        """Of the codes, (in, out)."""
        return (self.columns, self.rows)

    @property
    def scales_shape(self) -> tuple[int, ...]:
        """Of the zero points too."""
        return (self.rows,) if self.block is None else (self.columns // self.block, self.rows)

    @property
    def attributes(self) -> dict[str, int]:
        """Of the node. A scale per row is per channel: not every runtime has blocks that wide."""
        return {"axis": 1} if self.block is None else {"axis": 0, "block_size": self.block}

    def nbytes(self, scale_bytes: int) -> int:
        """Bytes in the file, with scales of `scale_bytes` each."""
        scales = self.rows * (1 if self.block is None else self.columns // self.block)
        total = -(-self.rows * self.columns * self.bits // 8) + scales * scale_bytes
        return total + (-(-scales * self.bits // 8) if self.zero_points else 0)


def fitting_block(group: int, columns: int) -> int | None:
    """The widest block that divides both a group and a row; None where none does.

    The operator allows a short last block, and ONNX Runtime reads one, but OpenVINO does not.
    """
    fitting = (size for size in reversed(BLOCK_SIZES) if group % size == 0 == columns % size)
    return next(fitting, None)


def qdq_layout(shape: tuple[int, int], spec: QuantSpec) -> QdqLayout:
    """Lay out a matrix (out, in).

    Codes of 2 and 3 bits take 4. Opset 25 has types of 2 bits, but torch traces to 23 at most, and
    ONNX Runtime 1.31 computes something else with them where the number of rows is odd.

    Raises:
        ValueError: several groups per row, and no block that divides them and the row.
    """
    rows, columns = shape
    group = spec.group_width(columns)
    block = None
    if group < columns:
        block = fitting_block(group, columns)
        if block is None:
            raise ValueError(f"no block divides groups of {group} and rows of {columns} columns")
    return QdqLayout(
        rows=rows,
        columns=columns,
        bits=4 if spec.bits <= 4 else 8,
        offset=1 << (spec.bits - 1) if spec.symmetric else 0,
        block=block,
        group=group,
        zero_points=not spec.symmetric,
    )
