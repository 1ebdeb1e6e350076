"""Random models with sides that every kernel takes, a tokenizer beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from asvd_q.models.buffers import persistent_buffers
from tests.models.families import FAMILIES

__all__ = ["MODELS", "NAMES", "WINDOW", "save_model"]

WINDOW = 96
"""Tokens of a calibration window: sliding windows and a short context both end before it."""

_SLIDING = {"sliding_window": 16}
_LLAMA = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OPT = {
    "vocab_size": 320,
    "hidden_size": 128,
    "word_embed_proj_dim": 128,
    "ffn_dim": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
_LONGROPE = {
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 16,
        "long_factor": [4.0] * 16,
        "original_max_position_embeddings": 64,
    },
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA | _SLIDING,
    "qwen2": _LLAMA
    | _SLIDING
    | {
        "use_sliding_window": True,
        "layer_types": ["full_attention", "sliding_attention"],
        "tie_word_embeddings": True,
    },
    "qwen3": _LLAMA | {"head_dim": 64},
    "gemma2": _LLAMA
    | _SLIDING
    | {"head_dim": 64, "query_pre_attn_scalar": 64, "tie_word_embeddings": True},
    "phi3": _LLAMA,
    "opt": _OPT,
    "gpt2": {
        "vocab_size": 320,
        "n_embd": 128,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    name: (FAMILIES[name][0], options) for name, options in _OPTIONS.items()
} | {
    # Normalisation after attention, and embeddings narrower than the blocks.
    "opt-350m": (
        "OPTForCausalLM",
        _OPT | {"word_embed_proj_dim": 64, "do_layer_norm_before": False},
    ),
    "phi3-longrope": ("Phi3ForCausalLM", _LLAMA | _LONGROPE),
    "gpt-neox": (
        "GPTNeoXForCausalLM",
        {
            "vocab_size": 320,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
        },
    ),
}

NAMES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma 2",
    "phi3": "Phi-3",
    "phi3-longrope": "Phi-3 with longrope",
    "opt": "OPT",
    "opt-350m": "OPT 350M",
    "gpt2": "GPT-2",
    "gpt-neox": "GPT-NeoX, Pythia",
}
"""What the README calls each."""


def save_model(
    folder: Path, model_class: str, options: dict[str, Any], *, tokenizer: bool = True
) -> Path:
    """Save a random model whose activations keep about one size from layer to layer."""
    base = getattr(transformers, model_class)
    torch.manual_seed(0)
    model = base(base.config_class(**options))
    _randomise(model)
    model.save_pretrained(folder)
    if tokenizer:
        _byte_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    for parameter in model.parameters():
        if parameter in embeddings:
            parameter.normal_(std=0.3)
        elif parameter.dim() == 1:  # the middle of a norm's scale is 1, or 0 in Gemma
            parameter.add_(torch.randn_like(parameter) * 0.1)
        else:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    for _, owner, leaf in persistent_buffers(model):
        owner.get_buffer(leaf).mul_(0.75)


def _byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token per byte, behind three special ones."""
    symbols = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(
        models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
