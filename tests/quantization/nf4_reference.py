"""bitsandbytes' own NF4, as a reference for ours."""

from __future__ import annotations

import torch
from bitsandbytes import functional
from torch import Tensor

from asvd_q.plan import QuantSpec

__all__ = ["nf4", "theirs", "weights"]


def nf4(block: int = 64, double: bool = False) -> QuantSpec:
    return QuantSpec(method="nf4", group_size=block, double_quant=double)


def weights(shape: tuple[int, int], kind: str, seed: int = 0) -> Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02
    match kind:
        case "outliers":
            weight[:, 0] *= 1000
        case "zeros":
            weight[:: max(1, shape[0] // 3)] = 0
        case "bfloat16":
            weight = weight.bfloat16()
        case "float64":
            weight = weight.double() * torch.pi
    return weight


def theirs(weight: Tensor, settings: QuantSpec) -> tuple[Tensor, Tensor]:
    """bitsandbytes' bytes, and the matrix (out, in) that it makes of them in float32.

    It is shown a single row: where the columns are no multiple of the block size, its kernel
    for CPUs with AVX-512 takes the scales of other blocks (0.50.2).
    """
    packed, state = functional.quantize_4bit(
        weight.float().reshape(1, -1),
        blocksize=settings.group_size,
        compress_statistics=bool(settings.double_quant),
        quant_type="nf4",
    )
    return packed, functional.dequantize_4bit(packed, state).reshape(weight.shape)
