"""Quantization methods by name. A new method is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from asvd_q.plan import QuantSpec
from asvd_q.quantization.rtn import quantize_rtn
from asvd_q.quantization.weights import FloatWeight, QuantizedWeight, StoredWeight

__all__ = ["METHODS", "Quantizer", "quantize", "weight_from_tensors"]


class Quantizer(Protocol):
    """Turns one matrix into what a store holds."""

    def __call__(self, weight: Tensor, spec: QuantSpec, gram: Tensor | None) -> StoredWeight:
        """Quantize.

        Args:
            weight: (out, in), floating point.
            spec: the settings.
            gram: float64 E[x xᵀ] (in, in) of the matrix's own input, for methods that want it.
        """
        ...


METHODS: Mapping[str, Quantizer] = {"rtn": quantize_rtn}

_READERS: Mapping[str, Callable[[dict[str, Tensor], QuantSpec], StoredWeight]] = {
    "rtn": QuantizedWeight.from_tensors,
}


def quantize(weight: Tensor, spec: QuantSpec, gram: Tensor | None = None) -> StoredWeight:
    """Quantize a matrix (out, in) with the method that `spec` names."""
    return METHODS[spec.method](weight, spec, gram)


def weight_from_tensors(parts: dict[str, Tensor], spec: QuantSpec | None) -> StoredWeight:
    """The inverse of `StoredWeight.tensors`; `spec` is None for floating point."""
    if spec is None:
        return FloatWeight(parts["weight"])
    return _READERS[spec.method](parts, spec)
