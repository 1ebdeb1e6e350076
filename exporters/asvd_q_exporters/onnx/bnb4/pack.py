"""A stored NF4 weight to the tensors of `MatMulBnb4`. Its codes are bitsandbytes' bytes."""

from __future__ import annotations

from torch import Tensor

from asvd_q.quantization import StoredWeight
from asvd_q.quantization.nf4 import Nf4Weight

__all__ = ["bnb4_tensor"]


def bnb4_tensor(weight: StoredWeight, part: str) -> Tensor:
    """One of the operator's tensors.

    Args:
        part: "packed", uint8 (⌈out · in / 2⌉,), or "absmax", float32 (blocks,).

    Raises:
        ValueError: the weight is not NF4.
    """
    if not isinstance(weight, Nf4Weight):
        raise ValueError("its store holds no NF4 codes")
    return weight.packed.reshape(-1) if part == "packed" else weight.scales()
