"""A GPTQ-format checkpoint behind the Runner protocol."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers

from asvd_q.evaluation.torch_runner import TorchRunner
from asvd_q.quantization import TORCH_TYPES
from asvd_q_exporters._runner import load_model, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from asvd_q.plan import FloatType

__all__ = ["load", "open_runner", "versions"]


def open_runner(folder: Path, compute_type: FloatType) -> TorchRunner:
    """The checkpoint on the CPU."""
    model = load(folder, compute_type)
    return TorchRunner(model, f"{versions()}, CPU, {compute_type}")


def load(folder: Path, compute_type: FloatType) -> PreTrainedModel:
    """Load a checkpoint for the CPU, with the one kernel that is right for every setting."""
    # gptqmodel starts a pool that wants more workers than a small machine has cores.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    with quiet():
        import gptqmodel  # noqa: F401
    model = load_model(folder, TORCH_TYPES[compute_type], {"backend": "torch"})
    for module in model.modules():
        # It is compiled at the first call, which takes a C++ compiler and half a minute.
        module.__dict__.pop("dequantize_weight", None)
    return model


def versions() -> str:
    """Of everything that computes."""
    return ", ".join(
        (
            f"gptqmodel {version('gptqmodel')}",
            f"transformers {transformers.__version__}",
            f"torch {torch.__version__}",
        )
    )
