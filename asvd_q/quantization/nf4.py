"""NF4: blocks of weights on the 16 quantiles of a normal distribution, made by bitsandbytes.

bitsandbytes chooses the codes; its bytes are kept as they are and dequantized here, so that a
store is read without it. Blocks run over the matrix row after row and may cross its rows.

Source: QLoRA, arXiv 2305.14314, section 3 (the data type and double quantization).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asvd_q.errors import MissingExtraError
from asvd_q.plan import QuantSpec
from asvd_q.process import quiet
from asvd_q.spec import NF4_NESTED_BLOCK

__all__ = ["NF4_VALUES", "Nf4Weight", "quantize_nf4"]

NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The values of the codes 0 … 15, as float32. Source: QLoRA, arXiv 2305.14314, appendix E."""


@dataclass(frozen=True)
class Nf4Weight:
    """A matrix in bitsandbytes' own bytes: W[i] = value of code i · scale of its block.

    Attributes:
        packed: uint8 (⌈out · in / 2⌉, 1), two codes per byte, the first in the high half.
        absmax: the blocks' scales: float32 (blocks,), or under double quantization uint8
            (blocks,), which index `nested_quant_map`.
        shape: (out, in).
        spec: the settings.
        nested_absmax: float32 (⌈blocks / 256⌉,), the scales of the scales; these three are None
            without double quantization.
        nested_quant_map: float32 (256,), the values that the bytes of `absmax` stand for.
        nested_offset: float32 (), added to every scale.
        notes: see `asvd_q.quantization.StoredWeight`.
    """

    packed: Tensor
    absmax: Tensor
    shape: tuple[int, int]
    spec: QuantSpec
    nested_absmax: Tensor | None = None
    nested_quant_map: Tensor | None = None
    nested_offset: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        weights = self.shape[0] * self.shape[1]
        blocks = -(-weights // self.spec.group_size)
        scale = torch.uint8 if self.spec.double_quant else torch.float32
        if self.packed.dtype != torch.uint8 or self.packed.numel() != -(-weights // 2):
            raise ValueError(f"{weights} NF4 codes do not fill {self.packed.numel()} bytes")
        if self.absmax.dtype != scale or tuple(self.absmax.shape) != (blocks,):
            raise ValueError(f"absmax is {scale} of shape ({blocks},)")
        nested = (self.nested_absmax, self.nested_quant_map, self.nested_offset)
        if any((part is None) == bool(self.spec.double_quant) for part in nested):
            raise ValueError("nested scales are stored if and only if they are double quantized")

    @property
    def nbytes(self) -> int:
        """See `asvd_q.quantization.StoredWeight`."""
        return sum(part.numel() * part.element_size() for part in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """See `asvd_q.quantization.StoredWeight`."""
        parts = {
            "packed": self.packed,
            "absmax": self.absmax,
            "nested_absmax": self.nested_absmax,
            "nested_quant_map": self.nested_quant_map,
            "nested_offset": self.nested_offset,
        }
        return {name: part for name, part in parts.items() if part is not None}

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], spec: QuantSpec, shape: tuple[int, int]
    ) -> Nf4Weight:
        """The inverse of `tensors`.

        Raises:
            KeyError: a tensor is missing.
            ValueError: the tensors do not fit the settings or the shape.
        """
        return cls(
            packed=tensors["packed"],
            absmax=tensors["absmax"],
            shape=shape,
            spec=spec,
            nested_absmax=tensors.get("nested_absmax"),
            nested_quant_map=tensors.get("nested_quant_map"),
            nested_offset=tensors.get("nested_offset"),
        )

    def scales(self) -> Tensor:
        """float32 (blocks,), the double quantization undone."""
        if self.nested_absmax is None:
            return self.absmax
        assert self.nested_quant_map is not None
        assert self.nested_offset is not None
        nested = self.nested_absmax.repeat_interleave(NF4_NESTED_BLOCK)[: self.absmax.numel()]
        return self.nested_quant_map[self.absmax.int()] * nested + self.nested_offset

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """See `asvd_q.quantization.StoredWeight`."""
        weights = self.shape[0] * self.shape[1]
        packed = self.packed.reshape(-1)
        codes = torch.stack((packed >> 4, packed & 15), dim=1).reshape(-1)[:weights]
        values = torch.tensor(NF4_VALUES, dtype=torch.float32, device=codes.device)[codes.int()]
        scales = self.scales().repeat_interleave(self.spec.group_size)[:weights]
        return values.mul_(scales).reshape(self.shape).to(dtype)


def quantize_nf4(weight: Tensor, spec: QuantSpec, gram: Tensor | None = None) -> Nf4Weight:
    """Quantize with bitsandbytes' own kernels.

    Args:
        weight: (out, in), floating point, finite; any sizes, also those that blocks do not
            divide.
        spec: block size and double quantization.
        gram: not used; part of the quantizers' common signature.

    Raises:
        ValueError: the weight holds NaN or infinity, or a value outside of float32.
        MissingExtraError: bitsandbytes is not installed.
    """
    functional = _bitsandbytes()
    # A layer of bitsandbytes' own is never made: on some CPUs its first forward pass repacks
    # the weight and rounds the scales, and a layer saved after that is wrong.
    single = weight.detach().float().contiguous()
    if not torch.isfinite(single).all():
        raise ValueError("the weight holds NaN or infinity")
    packed, state = functional.quantize_4bit(
        single,
        blocksize=spec.group_size,
        compress_statistics=bool(spec.double_quant),
        quant_type="nf4",
    )
    nested = state.state2
    return Nf4Weight(
        packed=packed,
        absmax=state.absmax,
        shape=(weight.shape[0], weight.shape[1]),
        spec=spec,
        nested_absmax=None if nested is None else nested.absmax,
        nested_quant_map=None if nested is None else nested.code.clone(),
        nested_offset=None if nested is None else state.offset,
    )


def _bitsandbytes() -> Any:
    """bitsandbytes.functional, without what the import has to say about optional kernels."""
    try:
        with quiet():
            import bitsandbytes.functional as functional
    except ImportError as error:
        raise MissingExtraError("bitsandbytes", "nf4", "quantize to NF4") from error
    return functional
