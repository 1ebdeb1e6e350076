"""Small random models of several architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

__all__ = ["FAMILIES", "random_tokens", "save_family", "save_tokenizer"]

_VOCABULARY, _HIDDEN, _LENGTH = 512, 128, 256
_COMMON: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": _HIDDEN,
    "intermediate_size": 2 * _HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": _LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEADS = {"head_dim": 64}
"""Wider than their share of the stream, as in the models of these families that people use."""
_OPT = {
    "vocab_size": _VOCABULARY,
    "hidden_size": _HIDDEN,
    "word_embed_proj_dim": _HIDDEN,
    "ffn_dim": 2 * _HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": _LENGTH,
}
_GPT2 = {
    "vocab_size": _VOCABULARY,
    "n_embd": _HIDDEN,
    "n_inner": 2 * _HIDDEN,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": _LENGTH,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _COMMON),
    "mistral": ("MistralForCausalLM", _COMMON),
    "qwen2": ("Qwen2ForCausalLM", _COMMON),
    "qwen3": ("Qwen3ForCausalLM", _COMMON | _HEADS),
    "gemma2": ("Gemma2ForCausalLM", _COMMON | _HEADS),
    "phi3": ("Phi3ForCausalLM", _COMMON),
    "opt": ("OPTForCausalLM", _OPT),
    "gpt2": ("GPT2LMHeadModel", _GPT2),
}
"""Name → class of transformers, and what its configuration is given."""


def save_family(name: str, folder: Path) -> Path:
    """Save a model of two blocks, float32.

    A matrix (out, in) is normal with variance 1 / in, so that no activation grows or dies; norms
    and biases are off their initial values, so that a lost one shows. Its tokenizer knows numbers:
    GPTQModel loads no model without one.
    """
    class_name, options = FAMILIES[name]
    base = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = base(base.config_class(**options, tie_word_embeddings=False))
    with torch.no_grad():
        for module in model.modules():
            for kind, parameter in module.named_parameters(recurse=False):
                if isinstance(module, nn.Embedding):
                    parameter.normal_()
                elif kind == "weight" and isinstance(module, nn.Linear | Conv1D):
                    inputs = parameter.shape[0 if isinstance(module, Conv1D) else 1]
                    parameter.normal_(std=inputs**-0.5)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    save_tokenizer(folder, _VOCABULARY)
    return folder


def save_tokenizer(folder: Path, vocabulary: int) -> None:
    """One that knows the numbers below `vocabulary`, each of them a token."""
    words = Tokenizer(WordLevel({str(token): token for token in range(vocabulary)}, "0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0").save_pretrained(folder)


def random_tokens(windows: int, window: int, seed: int) -> Tensor:
    """int64 (windows, window), none of them a special token."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(3, _VOCABULARY, (windows, window), generator=random)
