"""Weights that the model keeps as (in, out), as GPT-2's Conv1D does."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from asvd_q.models.tensors import TensorInfo

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["kept_transposed", "transposed"]


def kept_transposed(config: PreTrainedConfig, *, trust_remote_code: bool) -> set[str]:
    """Names of such weights, with and without the base model's prefix.

    A square one does not show it, so the structure of the model is asked.
    """
    from accelerate import init_empty_weights
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is not None and not hasattr(sys.modules[found.__module__], "Conv1D"):
        return set()  # the structure of a large model takes a while to build
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    names = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)
    }
    return names | {name.partition(".")[2] for name in names}


def transposed(info: TensorInfo) -> TensorInfo:
    """The same matrix, its sides exchanged."""
    return replace(info, shape=info.shape[::-1], load=lambda: info.load().T.contiguous())
