"""The node that computes with one matrix, in numbers alone: what its time depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from asvd_q.plan import FLOAT_BYTES, FloatType

__all__ = ["CONTRIB", "MatrixNode", "NarrowType", "Part", "float_node"]

CONTRIB = "com.microsoft"
"""Domain of the operators that are ONNX Runtime's own."""


NarrowType = Literal["int4", "uint4"]
"""Types of less than a byte; a file packs their values, the first in the low half of a byte."""

_BITS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8} | {
    name: 8 * size for name, size in FLOAT_BYTES.items()
}


@dataclass(frozen=True)
class Part:
    """One initializer of a node."""

    shape: tuple[int, ...]
    type: Literal["int8", "uint8"] | NarrowType | FloatType

    @property
    def nbytes(self) -> int:
        """In the file."""
        return -(-math.prod(self.shape) * _BITS[self.type] // 8)


@dataclass(frozen=True)
class MatrixNode:
    """y = x Wᵀ with W (out, in) as an operator holds it.

    Attributes:
        rows, columns: out and in.
        operator: its name.
        domain: empty for standard operators.
        attributes: in the order in which they are named.
        parts: initializers, in the order of the operator's inputs after x. `DequantizeLinear`
            takes nothing else: a `MatMul` of x with what it makes follows.
        activations: the type of x and y.
        session_level: accuracy level that a session is to have; None where it changes nothing.
    """

    rows: int
    columns: int
    operator: str
    domain: str
    attributes: tuple[tuple[str, int], ...]
    parts: tuple[Part, ...]
    activations: FloatType
    session_level: int | None = None

    @property
    def dequantizes(self) -> bool:
        """Whether the operator makes the matrix, and a `MatMul` after it the product."""
        return self.operator == "DequantizeLinear"

    @property
    def nbytes(self) -> int:
        """Of all initializers."""
        return sum(part.nbytes for part in self.parts)

    def __str__(self) -> str:
        """Everything that tells nodes apart, on one line."""
        words = [self.operator, f"{self.rows}x{self.columns}", self.activations]
        words += [f"{name}={value}" for name, value in self.attributes if name not in ("N", "K")]
        if self.operator == "MatMulNBits" and len(self.parts) > 2:
            words.append("zero_points")
        if self.dequantizes:
            words.append(self.parts[0].type)
        if self.session_level is not None:
            words.append(f"accuracy_level={self.session_level}")
        return " ".join(words)


def float_node(shape: tuple[int, int], dtype: FloatType) -> MatrixNode:
    """`MatMul` with a matrix (out, in) that lies as (in, out)."""
    rows, columns = shape
    return MatrixNode(rows, columns, "MatMul", "", (), (Part((columns, rows), dtype),), dtype)
