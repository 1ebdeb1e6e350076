"""A transformers checkpoint behind the Runner protocol."""

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
    """Load the checkpoint for the CPU."""
    model = load_model(folder, TORCH_TYPES[compute_type])
    return TorchRunner(model, runtime(compute_type))
