"""A stored NF4 weight to the tensors of a checkpoint. Its codes are bitsandbytes' bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from asvd_q.plan import FloatType
from asvd_q.quantization.nf4 import NF4_VALUES, Nf4Weight
from asvd_q_exporters.bitsandbytes.layout import STATE, quant_state

__all__ = ["pack_weight"]


def pack_weight(weight: Nf4Weight, dtype: FloatType) -> dict[str, Tensor]:
    """The tensors of one matrix, by what follows the name of its module.

    Args:
        dtype: of the checkpoint's floats.
    """
    offset = None if weight.nested_offset is None else float(weight.nested_offset)
    state = quant_state(weight.shape, weight.spec, dtype, offset)
    tensors = {
        "weight": weight.packed.reshape(-1, 1),
        "weight.absmax": weight.absmax,
        "weight.quant_map": torch.tensor(NF4_VALUES, dtype=torch.float32),
        STATE: torch.frombuffer(bytearray(state), dtype=torch.uint8),
    }
    if weight.nested_absmax is not None and weight.nested_quant_map is not None:
        tensors["weight.nested_absmax"] = weight.nested_absmax
        tensors["weight.nested_quant_map"] = weight.nested_quant_map
    return tensors
