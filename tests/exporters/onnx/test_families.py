"""Other architectures: biases, Conv1D, sliding windows, fused projections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers

from asvd_q_exporters.onnx import OnnxOptions
from tests.exporters.onnx.conftest import export
from tests.exporters.onnx.reference import reference_logits, relative, tokens
from tests.exporters.onnx.stores import eight_bit_store

_LLAMA_LIKE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}

CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, n_positions=64, vocab_size=128, initializer_range=0.2
    ),
    "opt": lambda: transformers.OPTConfig(
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=64,
        max_position_embeddings=64,
        vocab_size=128,
        init_std=0.2,
    ),
    "qwen2": lambda: transformers.Qwen2Config(**_LLAMA_LIKE),
    "qwen3": lambda: transformers.Qwen3Config(head_dim=16, **_LLAMA_LIKE),
    "mistral": lambda: transformers.MistralConfig(sliding_window=4, **_LLAMA_LIKE),
    "gemma2": lambda: transformers.Gemma2Config(head_dim=16, sliding_window=4, **_LLAMA_LIKE),
    "phi3": lambda: transformers.Phi3Config(**_LLAMA_LIKE),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_a_family_decodes_as_transformers_does(family: str, tmp_path: Path) -> None:
    store = eight_bit_store(tmp_path / "store", _save(CONFIGS[family](), tmp_path / "model"))
    assert len(store.records()) >= 8
    made = export(store, tmp_path / "onnx", OnnxOptions(accuracy_level=0))
    onnx.checker.check_model(str(made.folder / "model.onnx"))
    ids = tokens(2, 12)  # three times the sliding window
    runner = made.exporter.open(made.folder)
    parts, cache = [], None
    for chunk in ids.split([6, 1, 1, 4], dim=1):
        logits, cache = runner.forward(chunk, cache)
        parts.append(logits)
    assert relative(torch.cat(parts, dim=1), reference_logits(store, ids)) < 1e-5
    for name, matrices in made.exporter.read(made.folder):
        assert torch.equal(matrices["weight"], store.layer(name).weights["weight"].dequantize())


def _save(config: Any, folder: Path) -> Path:
    """A random model with biases that are not zero."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder
