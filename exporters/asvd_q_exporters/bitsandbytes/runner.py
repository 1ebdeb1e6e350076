"""A bitsandbytes checkpoint behind the Runner protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from asvd_q.evaluation.torch_runner import TorchRunner
from asvd_q.quantization import TORCH_TYPES
from asvd_q_exporters._runner import load_model, runtime

if TYPE_CHECKING:
    from asvd_q.plan import FloatType

__all__ = ["open_runner"]


def open_runner(folder: Path, compute_type: FloatType) -> TorchRunner:
    """The checkpoint on the CPU, computed in the type asked for."""
    dtype = TORCH_TYPES[compute_type]
    model = load_model(folder, dtype, {"bnb_4bit_compute_dtype": compute_type})
    for parameter in model.parameters():
        if parameter.is_floating_point():
            # transformers leaves every `weight` of a 4-bit checkpoint in the type of the file.
            parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # The kernel behind it computes in bfloat16 whatever is asked for.
            module.support_avx512bf16_for_cpu = False
    return TorchRunner(model, runtime(compute_type, "bitsandbytes"))
