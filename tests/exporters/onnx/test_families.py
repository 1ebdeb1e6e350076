"""Other architectures: biases, Conv1D, sliding windows, fused projections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from asvd_q.models import SourceModel
from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q.quantization import quantize
from asvd_q.records import LayerRecord
from asvd_q.store import Store, StoredLayer, StoreHeader
from asvd_q_exporters.onnx import OnnxOptions
from tests.exporters.onnx.conftest import export
from tests.exporters.onnx.reference import reference_logits, relative, tokens

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
    store = _eight_bit_store(tmp_path, CONFIGS[family]())
    assert len(store.records()) >= 8
    made = export(store, tmp_path / "onnx", OnnxOptions(accuracy_level=0))
    ids = tokens(2, 12)  # three times the sliding window
    runner = made.exporter.open(made.folder)
    parts, cache = [], None
    for chunk in ids.split([6, 1, 1, 4], dim=1):
        logits, cache = runner.forward(chunk, cache)
        parts.append(logits)
    assert relative(torch.cat(parts, dim=1), reference_logits(store, ids)) < 1e-5
    for name, matrices in made.exporter.read(made.folder):
        assert torch.equal(matrices["weight"], store.layer(name).weights["weight"].dequantize())


def _eight_bit_store(folder: Path, config: Any) -> Store:
    """A random model, and all linear layers of its blocks in 8 bits."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder / "model")
    source = SourceModel.open(str(folder / "model"))
    spec = QuantSpec(bits=8, group_size=32, symmetric=False)
    plans: list[LayerPlan] = []
    weights: list[torch.Tensor] = []
    for name, module in model.named_modules():
        blocks = [int(part) for part in name.split(".") if part.isdigit()]
        if not blocks or not isinstance(module, torch.nn.Linear | Conv1D):
            continue
        weight = module.weight.detach()
        weight = weight.T if isinstance(module, Conv1D) else weight
        plans.append(
            LayerPlan(
                name=name,
                kind=name.rsplit(".", 1)[-1],
                block=blocks[0],
                shape=(weight.shape[0], weight.shape[1]),
                quantization={"weight": spec},
            )
        )
        weights.append(weight)
    header = StoreHeader(
        key="test",
        asvd_q="0",
        source=source.identity,
        plan=Plan(float_type="float32", layers=tuple(plans)),
    )
    store = Store.create(folder / "store", header, source)
    for block in store.blocks():
        store.write_block(
            block,
            [
                StoredLayer(_record(plan), {"weight": quantize(weight, spec)})
                for plan, weight in zip(plans, weights, strict=True)
                if plan.block == block
            ],
        )
    return store


def _record(plan: LayerPlan) -> LayerRecord:
    return LayerRecord(
        **plan.model_dump(exclude={"predicted_bytes"}), bytes_before=0, bytes_after=0, errors={}
    )
