"""One file per quantization method, behind one protocol."""

from asvd_q.quantization.registry import METHODS, Quantizer, quantize, weight_from_tensors
from asvd_q.quantization.weights import (
    TORCH_TYPES,
    FloatWeight,
    QuantizedWeight,
    StoredWeight,
    float_type_of,
)

__all__ = [
    "METHODS",
    "TORCH_TYPES",
    "FloatWeight",
    "QuantizedWeight",
    "Quantizer",
    "StoredWeight",
    "float_type_of",
    "quantize",
    "weight_from_tensors",
]
