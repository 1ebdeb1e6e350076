"""Says of a model that this program has no way with it, before any work starts."""

from __future__ import annotations

import dataclasses
import re
import typing
from typing import TYPE_CHECKING

from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedConfig

from asvd_q.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from asvd_q.models.source import SourceModel

__all__ = ["require_attention", "require_decoder", "require_weights"]

_EXPERT = re.compile(r"\.experts?\.\d+\.")
"""In the name of a tensor of one expert."""


def require_decoder(source: SourceModel) -> None:
    """Raises ModelError for encoders, for encoder-decoders, and for models of more than text."""
    config = source.config
    named = ", ".join(config.architectures or [type(config).__name__])
    if config.is_encoder_decoder:
        raise ModelError(
            f"model.path: {source.path} holds an encoder and a decoder ({named}), and only "
            "decoders alone, such as LlamaForCausalLM, can be compressed"
        )
    if config.get_text_config() is not config:
        raise ModelError(
            f"model.path: {source.path} holds a model of more than text ({named}): save its "
            "language model as a folder of its own, and compress that"
        )
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not _decodes(config):
        raise ModelError(
            f"model.path: {source.path} holds an encoder ({named}), and only decoders, such as "
            "LlamaForCausalLM, can be compressed"
        )


def require_attention(source: SourceModel, model: nn.Module) -> None:
    """Raises ModelError for a model that keeps anything but keys and values between tokens.

    Known from what its forward says it returns; one that says nothing passes.
    """
    try:
        hint = typing.get_type_hints(model.forward).get("return")
    except (NameError, TypeError, AttributeError):
        return
    outputs = [kind for kind in typing.get_args(hint) or (hint,) if dataclasses.is_dataclass(kind)]
    names = {field.name for kind in outputs for field in dataclasses.fields(kind)}
    if names and "past_key_values" not in names:
        raise ModelError(
            f"model.path: {source.path} holds a {type(model).__name__}, which keeps a recurrent "
            "state and no keys and values: such models are not supported"
        )


def require_weights(source: SourceModel, model: nn.Module) -> None:
    """Raises ModelError where a parameter is not in the files, or not in the model's shape.

    Args:
        model: its parameters may be on the meta device; tied ones are one parameter.
    """
    names: dict[int, list[str]] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        shapes[id(parameter)] = tuple(parameter.shape)
    for key, known in names.items():
        stored = next(filter(None, map(source.resolve, known)), None)
        if stored is None:
            raise ModelError(_missing(source, model, known[0]))
        if source.tensors[stored].shape != shapes[key]:
            raise ModelError(
                f"{source.path}: {known[0]} has shape {source.tensors[stored].shape} where its "
                f"configuration says {shapes[key]}"
            )


def _decodes(config: PreTrainedConfig) -> bool:
    """Whether a configuration that could also be an encoder's is that of a decoder."""
    return bool(getattr(config, "is_decoder", True))


def _missing(source: SourceModel, model: nn.Module, name: str) -> str:
    expert = next(filter(_EXPERT.search, source.tensors), None)
    if expert is not None:
        return (
            f"model.path: {source.path} holds a mixture of experts ({type(model).__name__}) with "
            f"a tensor for every expert ({expert}), where transformers has one for all of them: "
            "such models are not supported"
        )
    return (
        f"{source.path} has no weight called {name}, which its configuration promises: the "
        "folder is incomplete"
    )
