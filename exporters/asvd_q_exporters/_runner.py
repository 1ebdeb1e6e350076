"""Opens checkpoints in transformers, without noise and without running code from a folder."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asvd_q.errors import ArtefactError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["load_model", "quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep imported packages from writing to the terminal; errors still rise."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    finally:
        logging.disable(level)


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
        from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

        from asvd_q.models.modeling_asvd_q import register

        base = model_type.removeprefix("asvd_q_")
        if base != model_type and base in CONFIG_MAPPING:
            register(CONFIG_MAPPING[base])
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            if quantization:
                config.quantization_config |= quantization
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=dtype, local_files_only=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()
            raise ArtefactError(
                f"{folder} cannot be loaded: {reason[0] if reason else type(error).__name__}"
            ) from error
    return model
