"""Opens checkpoints in transformers, without noise and without running code from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asvd_q.errors import ArtefactError, ModelError
from asvd_q.process import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["load_model", "quiet"]


def load_model(
    folder: Path, dtype: torch.dtype, quantization: dict[str, Any] | None = None
) -> PreTrainedModel:
    """Load a checkpoint as a user's transformers does, with our own copy of its classes.

    Args:
        dtype: in which the model computes.
        quantization: entries that replace those of the checkpoint's quantization_config.

    Raises:
        ArtefactError: the folder is no checkpoint, or is damaged.
    """
    try:
        model_type = str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError) as error:
        raise ArtefactError(f"{folder} has no readable config.json: {error}") from error
    with quiet():
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoModelForCausalLM

        from asvd_q.integrations.transformers import register
        from asvd_q.models.modeling_asvd_q import base_type

        try:
            if base_type(model_type) != model_type:
                register(model_type)
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            if quantization:
                config.quantization_config |= quantization
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=dtype, local_files_only=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, ModelError, SafetensorError) as error:
            reason = str(error).strip().splitlines()
            raise ArtefactError(
                f"{folder} cannot be loaded: {reason[0] if reason else type(error).__name__}"
            ) from error
    return model
