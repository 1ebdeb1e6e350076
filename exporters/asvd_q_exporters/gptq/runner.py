"""A GPTQ-format checkpoint behind the Runner protocol."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from asvd_q.evaluation.torch_runner import TorchRunner
from asvd_q.models.modeling_asvd_q import base_type
from asvd_q.quantization import TORCH_TYPES
from asvd_q_exporters._runner import load_model, loading, model_type, quiet, runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from asvd_q.plan import FloatType

__all__ = ["load", "open_in_gptqmodel", "open_runner"]


def open_runner(folder: Path, compute_type: FloatType) -> TorchRunner:
    """The checkpoint in transformers, on the CPU."""
    model = load(folder, compute_type)
    return TorchRunner(model, runtime(compute_type, "gptqmodel"))


def open_in_gptqmodel(folder: Path, compute_type: FloatType) -> TorchRunner:
    """The checkpoint in GPTQModel's own loader, on the CPU.

    Raises:
        ArtefactError: it cannot be loaded.
    """
    found = model_type(folder)
    dtype = TORCH_TYPES[compute_type]
    _prepare()
    with quiet():
        from gptqmodel import BACKEND, GPTQModel

        from asvd_q.integrations.gptqmodel import register

        with loading(folder):
            if base_type(found) != found:
                register(found)
            # It loads for no float32: the model is made one afterwards.
            wrapper = GPTQModel.load(
                str(folder),
                device="cpu",
                backend=BACKEND.GPTQ_TORCH,
                dtype=torch.float16 if dtype == torch.float32 else dtype,
            )
        model = _uncompiled(wrapper.model.to(dtype))
    return TorchRunner(model, runtime(compute_type, "gptqmodel"))


def load(folder: Path, compute_type: FloatType) -> PreTrainedModel:
    """Load a checkpoint for the CPU, with the one kernel that is right for every setting."""
    _prepare()
    return _uncompiled(load_model(folder, TORCH_TYPES[compute_type], {"backend": "torch"}))


def _prepare() -> None:
    # gptqmodel starts a pool that wants more workers than a small machine has cores.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    with quiet():
        import gptqmodel  # noqa: F401


def _uncompiled(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        # It is compiled at the first call, which takes a C++ compiler and half a minute.
        module.__dict__.pop("dequantize_weight", None)
    return model
