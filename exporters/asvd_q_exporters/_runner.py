"""Opens checkpoints in transformers, without noise and without running code from a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asvd_q.errors import ArtefactError, ModelError, first_line
from asvd_q.process import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from asvd_q.plan import FloatType

__all__ = ["load_model", "loading", "model_type", "quiet", "runtime"]


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Turn whatever a loader stumbles over into an `ArtefactError`.

    Loaders check little: a checkpoint that does not fit shows as any of these.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        ModelError,
        OSError,
        RuntimeError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        raise ArtefactError(f"{folder} cannot be loaded: {first_line(error)}") from error


def model_type(folder: Path) -> str:
    """Architecture of a checkpoint, as its `config.json` names it.

    Raises:
        ArtefactError: the folder is no checkpoint.
    """
    try:
        return str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError) as error:
        raise ArtefactError(f"{folder} has no readable config.json: {error}") from error


def runtime(compute_type: FloatType, *packages: str) -> str:
    """What computes, for `Runner.runtime`: the packages, transformers and torch, with versions."""
    names = (*packages, "transformers", "torch")
    return f"{', '.join(f'{name} {version(name)}' for name in names)}, CPU, {compute_type}"


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
    found = model_type(folder)
    with quiet():
        from transformers import AutoConfig, AutoModelForCausalLM

        from asvd_q.integrations.transformers import register
        from asvd_q.models.modeling_asvd_q import base_type

        with loading(folder):
            if base_type(found) != found:
                register(found)
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            if quantization:
                config.quantization_config |= quantization
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=dtype, local_files_only=True
            )
    return model
