"""How a checkpoint holds floating-point matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from asvd_q_exporters._checkpoint import CheckpointFormat

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.plan import QuantSpec
    from asvd_q.quantization import StoredWeight

__all__ = ["float_format"]


def float_format(dtype: torch.dtype) -> CheckpointFormat:
    """A matrix (out, in) as one tensor of that shape, as `nn.Linear` has it.

    Codes become the floats that they stand for.
    """

    def specs(
        shape: tuple[int, int], spec: QuantSpec | None
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"weight": (dtype, shape)}

    def tensors(weight: StoredWeight) -> dict[str, Tensor]:
        return {"weight": weight.dequantize(dtype)}

    return CheckpointFormat(specs, tensors, as_source=True)
