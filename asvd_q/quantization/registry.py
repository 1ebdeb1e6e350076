"""One protocol for all quantization methods; `asvd_q.methods` says where each one lives."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

from torch import Tensor

from asvd_q.methods import METHODS
from asvd_q.plan import QuantSpec
from asvd_q.quantization.weights import FloatWeight, StoredWeight

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


def quantize(weight: Tensor, spec: QuantSpec, gram: Tensor | None = None) -> StoredWeight:
    """Quantize a matrix (out, in) with the method that `spec` names.

    Args:
        gram: E[x xᵀ] (in, in) of the matrix's own input, up to a factor. Methods whose
            `needs_gram` is false do not look at it.

    Returns:
        What is stored; its `dequantize` is exactly what is evaluated, and its `notes` say what
        had to be done to get there.

    Raises:
        ValueError: NaN or infinity in the weight or the Gram matrix, a weight too large for its
            scale, or no Gram matrix where the method needs one.
        MissingExtraError: the package that does the work is not installed.
    """
    method = METHODS[spec.method]
    if method.needs_gram and gram is None:
        raise ValueError(
            f"{spec.method} needs the Gram matrix of the layer's input: give the recipe a "
            "`calibration` section"
        )
    quantizer: Quantizer = _load(method.quantizer)
    return quantizer(weight, spec, gram if method.needs_gram else None)


def weight_from_tensors(
    parts: dict[str, Tensor], spec: QuantSpec | None, shape: tuple[int, int]
) -> StoredWeight:
    """The inverse of `StoredWeight.tensors`.

    Args:
        spec: None for floating point.
        shape: (out, in) of the matrix.

    Raises:
        KeyError: a tensor is missing.
        ValueError: the tensors do not fit the settings or the shape.
    """
    if spec is None:
        return FloatWeight(parts["weight"])
    made: StoredWeight = _load(METHODS[spec.method].weight).from_tensors(parts, spec, shape)
    return made


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
