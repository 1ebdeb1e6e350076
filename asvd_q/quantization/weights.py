"""What a store holds for one matrix: floats, or integer codes with their scales.

Every kind answers the same questions: the tensors to write, the matrix they stand for, and the
bytes they count for. `dequantize` gives exactly the matrix that is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from asvd_q.plan import FloatType, QuantSpec

__all__ = ["TORCH_TYPES", "FloatWeight", "QuantizedWeight", "StoredWeight", "float_type_of"]

TORCH_TYPES: dict[FloatType, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def float_type_of(dtype: torch.dtype) -> FloatType:
    """Name of a torch floating-point type that a store can hold."""
    for name, candidate in TORCH_TYPES.items():
        if candidate == dtype:
            return name
    raise ValueError(f"{dtype} is not one of {', '.join(TORCH_TYPES)}")


class StoredWeight(Protocol):
    """One matrix (out, in) as it is stored."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes in the store's count: codes at their own width."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be done to quantize it, for the layer's record; not stored with it."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to write, by suffix."""
        ...

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix (out, in) that these tensors stand for."""
        ...


@dataclass(frozen=True)
class FloatWeight:
    """A matrix kept in floating point, already rounded to the type it is stored in."""

    weight: Tensor
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """See `StoredWeight`."""
        return (self.weight.shape[0], self.weight.shape[1])

    @property
    def nbytes(self) -> int:
        """See `StoredWeight`."""
        return self.weight.numel() * self.weight.element_size()

    def tensors(self) -> dict[str, Tensor]:
        """See `StoredWeight`."""
        return {"weight": self.weight}

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """See `StoredWeight`."""
        return self.weight.to(dtype)


@dataclass(frozen=True)
class QuantizedWeight:
    """Integer codes of a matrix: W[i, j] = (codes[i, j] − zero) · scale, per group of columns.

    Attributes:
        codes: uint8 (out, in), one code per byte, below 2^bits.
        scales: float16 (out, groups), not zero. Codes are chosen for these rounded scales.
        zeros: uint8 (out, groups), or None when symmetric: then the zero point is 2^(bits−1).
        spec: the settings; column j belongs to group j // spec.group_width(in), after
            `permutation` where there is one.
        permutation: int32 (in,), the order in which columns were grouped (act order); None
            when columns are grouped as they stand.
        notes: see `StoredWeight`.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    spec: QuantSpec
    permutation: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rows, columns = self.codes.shape
        expected = (rows, self.spec.groups(columns))
        if self.codes.dtype != torch.uint8 or self.scales.dtype != torch.float16:
            raise ValueError("codes are uint8 and scales float16")
        if tuple(self.scales.shape) != expected:
            raise ValueError(f"scales have shape {tuple(self.scales.shape)}, not {expected}")
        if (self.zeros is None) != self.spec.symmetric:
            raise ValueError("zero points are stored if and only if the codes are asymmetric")
        if self.zeros is not None and tuple(self.zeros.shape) != expected:
            raise ValueError(f"zero points have shape {tuple(self.zeros.shape)}, not {expected}")
        if self.permutation is not None and tuple(self.permutation.shape) != (columns,):
            raise ValueError(f"the permutation is not one of {columns} columns")

    @property
    def shape(self) -> tuple[int, int]:
        """See `StoredWeight`."""
        return (self.codes.shape[0], self.codes.shape[1])

    @property
    def nbytes(self) -> int:
        """See `StoredWeight`."""
        bits = self.codes.numel() * self.spec.bits + self.scales.numel() * 16
        if self.zeros is not None:
            bits += self.zeros.numel() * self.spec.bits
        if self.permutation is not None:
            bits += self.permutation.numel() * 32
        return -(-bits // 8)

    @property
    def group_index(self) -> Tensor:
        """Group of every column, int64 (in,)."""
        columns = self.codes.shape[1]
        width = self.spec.group_width(columns)
        index = torch.arange(columns, device=self.codes.device) // width
        if self.permutation is None:
            return index
        return torch.empty_like(index).scatter_(0, self.permutation.long(), index)

    def zero_points(self) -> Tensor:
        """Zero points uint8 (out, groups), the symmetric default written out."""
        if self.zeros is not None:
            return self.zeros
        return torch.full(self.scales.shape, 1 << (self.spec.bits - 1), dtype=torch.uint8)

    def tensors(self) -> dict[str, Tensor]:
        """See `StoredWeight`."""
        parts = {"codes": self.codes, "scales": self.scales}
        if self.zeros is not None:
            parts["zeros"] = self.zeros
        if self.permutation is not None:
            parts["permutation"] = self.permutation
        return parts

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], spec: QuantSpec, shape: tuple[int, int] | None = None
    ) -> QuantizedWeight:
        """The inverse of `tensors`.

        Args:
            shape: (out, in); None takes that of the codes.

        Raises:
            KeyError: a tensor is missing.
            ValueError: the tensors do not fit the settings or the shape.
        """
        if shape not in (None, tuple(tensors["codes"].shape)):
            raise ValueError(f"codes have shape {tuple(tensors['codes'].shape)}, not {shape}")
        return cls(
            codes=tensors["codes"],
            scales=tensors["scales"],
            zeros=tensors.get("zeros"),
            spec=spec,
            permutation=tensors.get("permutation"),
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """See `StoredWeight`."""
        index = self.group_index
        zeros = self.zero_points().to(device=self.codes.device, dtype=torch.float32)
        scales = self.scales.to(torch.float32)
        weight = (self.codes.to(torch.float32) - zeros[:, index]) * scales[:, index]
        return weight.to(dtype)
