"""A compressed-tensors checkpoint behind the Runner protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from asvd_q.evaluation.torch_runner import TorchRunner
from asvd_q.quantization import TORCH_TYPES
from asvd_q_exporters._runner import load_model, quiet, runtime

if TYPE_CHECKING:
    from asvd_q.plan import FloatType

__all__ = ["open_runner"]


def open_runner(folder: Path, compute_type: FloatType) -> TorchRunner:
    """Load the checkpoint for the CPU.

    The library turns all codes into floats at the first call, with progress bars: it is made here.
    """
    model = load_model(folder, TORCH_TYPES[compute_type])
    with quiet(), torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.long))
    return TorchRunner(model, runtime(compute_type, "compressed-tensors"))
