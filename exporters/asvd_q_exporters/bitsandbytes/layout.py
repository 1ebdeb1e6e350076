"""How bitsandbytes' 4-bit weights lie in a checkpoint, as plain arithmetic.

Source: bitsandbytes 0.50.2, `functional.QuantState.as_dict` and `nn.Linear4bit`.
"""

from __future__ import annotations

import json
from math import prod
from typing import Any

from asvd_q.plan import FloatType, LayerPlan, QuantSpec
from asvd_q.spec import NF4_NESTED_BLOCK
from asvd_q_exporters._options import layer_bytes

__all__ = [
    "METHOD",
    "ROWS",
    "STATE",
    "kernels_take",
    "quant_state",
    "stored_bytes",
    "tensor_shapes",
]

METHOD = "nf4"
"""The one method whose codes the format holds."""

ROWS = 32
"""Output channels of a tile in the kernel for CPUs with AVX512-BF16."""

STATE = "weight.quant_state.bitsandbytes__nf4"
"""Name of the tensor whose bytes are JSON: what loaders know of a weight besides its tensors."""

_CODES = 16
_NESTED_CODES = 256
_OFFSET_WIDTH = 24
"""Characters that hold any float32 as JSON writes it."""


def kernels_take(shape: tuple[int, int], spec: QuantSpec) -> bool:
    """Whether bitsandbytes computes a matrix (out, in) on every device.

    Its blocks run over the whole matrix and may cross rows, but on CPUs with AVX512 the kernel
    that dequantizes takes wrong scales where they do, without a word. The kernel for CPUs with
    AVX512-BF16, which a layer in eval mode takes by the CPU alone, raises there, and where output
    channels do not fill its tiles (bitsandbytes 0.50.2).
    """
    return shape[0] % ROWS == 0 and shape[1] % spec.group_size == 0


def tensor_shapes(
    shape: tuple[int, int], spec: QuantSpec, dtype: FloatType
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(type, shape) of each tensor that holds a matrix (out, in), by what follows its module.

    Args:
        dtype: of the checkpoint's floats.
    """
    weights = shape[0] * shape[1]
    blocks = -(-weights // spec.group_size)
    state = len(quant_state(shape, spec, dtype, 0.0))
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        "weight": ("uint8", (-(-weights // 2), 1)),
        "weight.absmax": ("uint8" if spec.double_quant else "float32", (blocks,)),
        "weight.quant_map": ("float32", (_CODES,)),
        STATE: ("uint8", (state,)),
    }
    if spec.double_quant:
        nested = -(-blocks // NF4_NESTED_BLOCK)
        found["weight.nested_absmax"] = ("float32", (nested,))
        found["weight.nested_quant_map"] = ("float32", (_NESTED_CODES,))
    return found


def quant_state(
    shape: tuple[int, int], spec: QuantSpec, dtype: FloatType, offset: float | None
) -> bytes:
    """The JSON beside a matrix (out, in), key for key as bitsandbytes writes it.

    Under double quantization it ends in blanks that make up for a short offset, so that its
    length is known before the offset is. JSON does not mind them.

    Args:
        dtype: that the weight had before, to which loaders dequantize it.
        offset: added to every scale; used under double quantization alone.
    """
    state: dict[str, Any] = {
        "quant_type": METHOD,
        "blocksize": spec.group_size,
        "dtype": dtype,
        "shape": list(shape),
    }
    if not spec.double_quant:
        return json.dumps(state).encode()
    state |= {
        "nested_blocksize": NF4_NESTED_BLOCK,
        "nested_dtype": "float32",
        "nested_offset": offset,
    }
    width = len(json.dumps(state | {"nested_offset": 0})) - 1 + _OFFSET_WIDTH
    return json.dumps(state).ljust(width).encode()


def stored_bytes(layer: LayerPlan, dtype: FloatType | None) -> int:
    """Bytes of a layer's matrices: codes, scales, tables, JSON, and floats.

    Args:
        dtype: of the checkpoint's floats; see `float_bytes`. Where it is None, the JSON is
            counted with the longest name, "bfloat16": one byte more than the others take.
    """
    sizes = {"uint8": 1, "float32": 4}

    def coded(shape: tuple[int, int], spec: QuantSpec) -> int:
        tensors = tensor_shapes(shape, spec, dtype or "bfloat16").values()
        return sum(sizes[name] * prod(dimensions) for name, dimensions in tensors)

    return layer_bytes(layer, dtype, coded)
