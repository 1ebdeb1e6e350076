"""A model folder's configuration, as it is for the dense model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asvd_q.errors import ModelError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["CODE_KEYS", "RANK_KEYS", "dense_fields", "load_config", "read_fields"]

CODE_KEYS = ("quantization_config", "compression_config")
"""Entries of config.json that say how its weights were quantized."""

RANK_KEYS = ("truncation_ranks", "correction_ranks")
"""Entries of config.json that name layers in factors, or with a correction: layer → rank."""


def read_fields(folder: Path) -> dict[str, Any]:
    """Content of `config.json`.

    Raises:
        ModelError: it is no JSON object.
    """
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from error
    if not isinstance(fields, dict):
        raise _unreadable(folder, TypeError("it is no mapping"))
    return fields


def dense_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same without what said that the weights are codes or factors.

    The code that came with factors (`auto_map`) goes with them; any other stays.
    """
    dense = {key: value for key, value in fields.items() if key not in (*CODE_KEYS, *RANK_KEYS)}
    named = {name for key in RANK_KEYS for name in fields.get(key) or {}}
    if named:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        from asvd_q.models.modeling_asvd_q import base_type

        dense.pop("auto_map", None)
        if "lm_head" in named:  # which is then not the embedding, whatever was written
            dense["tie_word_embeddings"] = False
        dense["model_type"] = model_type = base_type(str(fields.get("model_type")))
        if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            dense["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]
    return dense


def load_config(folder: Path, *, trust_remote_code: bool) -> PreTrainedConfig:
    """The configuration of the dense model.

    Raises:
        ModelError: the file cannot be read, or is of no architecture that transformers knows.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    fields = read_fields(folder)
    try:
        if any(fields.get(key) for key in RANK_KEYS):
            dense = dense_fields(fields)
            return CONFIG_MAPPING[dense["model_type"]].from_dict(dense)
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (ValueError, OSError, KeyError) as error:
        raise _unreadable(folder, error) from error
    for key in CODE_KEYS:
        if hasattr(config, key):
            delattr(config, key)
    return config


def _unreadable(folder: Path, error: Exception) -> ModelError:
    return ModelError(
        f"model.path: the configuration in {folder} cannot be read: {first_line(error)}"
    )
