"""The node that computes with one matrix, in numbers alone: what its time depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from asvd_q.plan import FLOAT_BYTES, FloatType

__all__ = ["CONTRIB", "MatrixNode", "Part", "float_node"]

CONTRIB = "com.microsoft"
"""Domain of the operators that are ONNX Runtime's own."""


@dataclass(frozen=True)
class Part:
    """One initializer of a node."""

    shape: tuple[int, ...]
    type: Literal["uint8"] | FloatType

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (1 if self.type == "uint8" else FLOAT_BYTES[self.type])


@dataclass(frozen=True)
class MatrixNode:
    """y = x Wᵀ with W (out, in) as an operator holds it.

    Attributes:
        rows, columns: out and in.
        operator: its name.
        domain: empty for standard operators.
        attributes: in the order in which they are named.
        parts: initializers, in the order of the operator's inputs after x.
        activations: the type of x and y.
    """

    rows: int
    columns: int
    operator: str
    domain: str
    attributes: tuple[tuple[str, int], ...]
    parts: tuple[Part, ...]
    activations: FloatType

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def __str__(self) -> str:
        """Everything that tells nodes apart, on one line."""
        words = [self.operator, f"{self.rows}x{self.columns}", self.activations]
        words += [f"{name}={value}" for name, value in self.attributes if name not in ("N", "K")]
        if self.operator == "MatMulNBits" and len(self.parts) > 2:
            words.append("zero_points")
        return " ".join(words)


def float_node(shape: tuple[int, int], dtype: FloatType) -> MatrixNode:
    """`MatMul` with a matrix (out, in) that lies as (in, out)."""
    rows, columns = shape
    return MatrixNode(rows, columns, "MatMul", "", (), (Part((columns, rows), dtype),), dtype)
