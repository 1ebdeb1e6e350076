"""Quantization methods by name. A new method is one file and one entry in `METHODS`.

Nothing heavy is imported: recipes and plans read names and settings without loading torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["INTEGER_METHODS", "METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """Where a method lives and what it asks for.

    Attributes:
        quantizer: "module:function" of a `asvd_q.quantization.Quantizer`.
        weight: "module:class" of the `asvd_q.quantization.StoredWeight` that it makes.
        settings: the fields of `asvd_q.plan.QuantSpec` that belong to it, with its defaults.
        needs_gram: whether it wants the Gram matrix of its input, and so a calibration.
    """

    quantizer: str
    weight: str
    settings: Mapping[str, int | float | bool | str]
    needs_gram: bool = False


_CODES = "asvd_q.quantization.weights:QuantizedWeight"

METHODS: Mapping[str, Method] = {
    "rtn": Method(
        "asvd_q.quantization.rtn:quantize_rtn",
        _CODES,
        {"bits": 8, "group_size": 128, "symmetric": True, "clip": "minmax"},
    ),
    "gptq": Method(
        "asvd_q.quantization.gptq:quantize_gptq",
        _CODES,
        {
            "bits": 4,
            "group_size": 128,
            "symmetric": True,
            "clip": "mse",
            "act_order": False,
            "static_groups": False,
            "damping": 0.01,
            "backend": "native",
        },
        needs_gram=True,
    ),
    "nf4": Method(
        "asvd_q.quantization.nf4:quantize_nf4",
        "asvd_q.quantization.nf4:Nf4Weight",
        {"bits": 4, "group_size": 64, "double_quant": False},
    ),
}

INTEGER_METHODS = tuple(name for name, method in METHODS.items() if method.weight == _CODES)
"""Methods whose result is integer codes on an affine grid."""
