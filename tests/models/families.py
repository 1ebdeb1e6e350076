"""Small random models of several architectures, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

_COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_OPT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _COMMON),
    "mistral": ("MistralForCausalLM", _COMMON | {"sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", _COMMON),
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "opt": ("OPTForCausalLM", _OPT),
    # A window shorter than the test's sequences: the two kinds of layer then differ.
    "gemma2": ("Gemma2ForCausalLM", _COMMON | {"head_dim": 8, "sliding_window": 4}),
    "qwen3": ("Qwen3ForCausalLM", _COMMON | {"head_dim": 8}),
    "phi3": ("Phi3ForCausalLM", _COMMON),
}

SITES: dict[str, list[tuple[str, ...]]] = {
    "llama": [
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ],
    "gpt2": [("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)],
    "opt": [
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.out_proj",),
        ("fc1",),
        ("fc2",),
    ],
    "phi3": [
        ("self_attn.qkv_proj",),
        ("self_attn.o_proj",),
        ("mlp.gate_up_proj",),
        ("mlp.down_proj",),
    ],
}
for _like_llama in ("mistral", "qwen2", "qwen3", "gemma2"):
    SITES[_like_llama] = SITES["llama"]
"""Layers of a block that are fed by one activation, in the order of the forward pass."""

TOKENS = torch.randint(3, 64, (3, 11), generator=torch.Generator().manual_seed(5))


def save_family(name: str, folder: Path, *, tied: bool = False, seed: int = 0) -> Path:
    """Save a random model; every parameter is random, norms and biases too."""
    model_class, options = FAMILIES[name]
    base = getattr(transformers, model_class)
    torch.manual_seed(seed)
    model = base(base.config_class(**options, tie_word_embeddings=tied))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


def plain_model(folder: Path) -> PreTrainedModel:
    """The whole model as transformers loads it, float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def plain_logits(folder: Path, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = plain_model(folder)(tokens, use_cache=False).logits
    return logits
