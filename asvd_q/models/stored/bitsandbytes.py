"""Checkpoints that transformers saves of models quantized by bitsandbytes.

4 bits: `weight` uint8, two codes per byte, the first in the high half; `weight.absmax`, the scale
of every block of weights in the order of their rows; `weight.quant_map`, the values of the 16
codes; `weight.quant_state.bitsandbytes__nf4` (or fp4), JSON as bytes. Under double quantization
absmax holds uint8 that stand for `weight.nested_quant_map` times `weight.nested_absmax`, plus an
offset. 8 bits: `weight` int8 and `SCB`, the largest magnitude of every row.

Source: QLoRA, arXiv 2305.14314, section 3; LLM.int8(), arXiv 2208.07339, section 2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from asvd_q.errors import ModelError
from asvd_q.models.stored.base import Matrix, Settings, part, require
from asvd_q.models.tensors import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["bitsandbytes_matrices"]

_STATE = ".weight.quant_state.bitsandbytes__"
_ROWS = ".SCB"
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_STORAGE = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}
"""Bytes of the types that codes may be stored in, whatever they are (`bnb_4bit_quant_storage`)."""


def bitsandbytes_matrices(tensors: Mapping[str, TensorInfo], settings: Settings) -> list[Matrix]:
    """See `Format`."""
    found = []
    for name in tensors:
        if _STATE in name:
            found.append(_blocks(tensors, name))
        elif name.endswith(_ROWS):
            found.append(_rows(tensors, name))
    return found


@dataclass(frozen=True)
class _Blocks:
    """One layer of 4 bits: its tensors by the last part of their names, and its state."""

    layer: str
    tensors: Mapping[str, TensorInfo]
    state: Mapping[str, Any]

    def load(self) -> Tensor:
        """(out, in) in the type that the weight had before it was quantized."""
        shape = tuple(self.state["shape"])
        count = shape[0] * shape[1]
        packed = self.tensors["weight"].load().view(torch.uint8).reshape(-1)
        codes = torch.stack((packed >> 4, packed & 15), dim=1).reshape(-1)[:count]
        values = self.tensors["quant_map"].load().float()[codes.int()]
        values *= self._scales().repeat_interleave(self.state["blocksize"])[:count]
        dtype: torch.dtype = getattr(torch, self.state["dtype"])
        return values.reshape(shape).to(dtype)

    def _scales(self) -> Tensor:
        """float32 (blocks,)."""
        absmax = self.tensors["absmax"].load()
        if "nested_absmax" not in self.tensors:
            return absmax.float()
        nested = self.tensors["nested_absmax"].load().float()
        nested = nested.repeat_interleave(self.state["nested_blocksize"])[: absmax.numel()]
        values = self.tensors["nested_quant_map"].load().float()
        offset: float = self.state["nested_offset"]
        return values[absmax.int()] * nested + offset


def _blocks(tensors: Mapping[str, TensorInfo], name: str) -> Matrix:
    layer = name.partition(_STATE)[0]
    state = _state(tensors[name], layer)
    needed = ["weight", "weight.absmax", "weight.quant_map"]
    nested = "nested_offset" in state
    if nested:
        needed += ["weight.nested_absmax", "weight.nested_quant_map"]
    found = {suffix.split(".")[-1]: part(tensors, layer, suffix, name) for suffix in needed}
    shape = tuple(state["shape"])
    count = shape[0] * shape[1]
    blocks = -(-count // state["blocksize"])
    held = found["weight"].numel * _STORAGE.get(found["weight"].dtype, 0)
    fits = held == -(-count // 2) and found["absmax"].numel == blocks
    fits = fits and found["absmax"].dtype == ("U8" if nested else "F32")
    if nested:
        outer = -(-blocks // state["nested_blocksize"])
        fits = fits and found["nested_absmax"].numel == outer
        fits = fits and found["nested_quant_map"].shape == (256,)
    require(
        fits and found["quant_map"].shape == (16,),
        found["weight"],
        layer,
        f"its tensors are not those of a matrix of {shape} in blocks of {state['blocksize']}",
    )
    return Matrix(
        layer=layer,
        shape=(shape[0], shape[1]),
        dtype=_TYPES[state["dtype"]],
        parts=(*(f"{layer}.{suffix}" for suffix in needed), name),
        load=_Blocks(layer, found, state).load,
        bits=4,
    )


def _state(info: TensorInfo, layer: str) -> dict[str, Any]:
    """What is no tensor of a layer of 4 bits, checked.

    Raises:
        ModelError: it cannot be read, or says what cannot be.
    """
    try:
        state: dict[str, Any] = json.loads(bytes(info.load().tolist()))
        numbers = [*state["shape"], state["blocksize"], state.get("nested_blocksize", 1)]
        sound = (
            len(state["shape"]) == 2
            and all(isinstance(number, int) and number > 0 for number in numbers)
            and state["dtype"] in _TYPES
            and isinstance(state.get("nested_offset", 0.0), float | int)
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    require(sound, info, layer, "its quant_state cannot be read")
    return state


def _rows(tensors: Mapping[str, TensorInfo], name: str) -> Matrix:
    layer = name.removesuffix(_ROWS)
    weight, scale = part(tensors, layer, "weight", name), tensors[name]
    fits = len(weight.shape) == 2 and weight.dtype == "I8" and scale.shape == weight.shape[:1]
    require(fits, weight, layer, "weight is no int8 matrix with a scale for every row")
    layout = tensors.get(f"{layer}.weight_format")
    if layout is not None and int(layout.load()):
        raise ModelError(
            f"{weight.file}: {layer} lies in the order of a GPU's kernel: save it anew with a "
            "current bitsandbytes, or start from the unquantized model"
        )

    def load() -> Tensor:
        # As bitsandbytes does it, whose factor is not quite one over 127.
        return (weight.load() * scale.load().float()[:, None] * 7.874015718698502e-3).half()

    return Matrix(
        layer=layer,
        shape=(weight.shape[0], weight.shape[1]),
        dtype="F16",
        parts=(f"{layer}.weight", name, f"{layer}.weight_format"),
        load=load,
        bits=8,
    )
