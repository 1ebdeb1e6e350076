"""The modelling file: every decoder family, its checkpoints, and the file on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from asvd_q.models import modeling_asvd_q as modeling
from asvd_q.models.modeling_asvd_q import LowRankLinear, swap_factors

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
OPT = {
    **{key: SMALL[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers")},
    "ffn_dim": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
}
FAMILIES = [
    ("LlamaForCausalLM", SMALL),
    ("MistralForCausalLM", SMALL),
    ("Qwen2ForCausalLM", SMALL),
    ("Qwen3ForCausalLM", SMALL),
    ("Gemma2ForCausalLM", SMALL),
    ("Phi3ForCausalLM", SMALL),
    ("OPTForCausalLM", OPT),
    ("GPT2LMHeadModel", GPT2),
]
TOKENS = torch.arange(12).reshape(2, 6) + 3


def some_ranks(model: nn.Module) -> dict[str, int]:
    """A few linear layers of the blocks, by their names in the model."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.count(".") > 2
    ]
    return {name: 4 + index for index, name in enumerate(names[1::2])}


def factorised(name: str, options: dict[str, Any]) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    base = getattr(transformers, name)
    ranks = some_ranks(base(base.config_class(**options)))
    assert ranks
    model = getattr(modeling, f"AsvdQ{name}")
    built: transformers.PreTrainedModel = model(
        model.config_class(**options, truncation_ranks=ranks)
    )
    return built.eval()


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_round_trip_of_every_family(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = factorised(name, options)
    expected = model(TOKENS).logits
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "asvd_q_" + model.config_class.__mro__[1].model_type
    assert config["truncation_ranks"] == model.config.truncation_ranks

    assert (tmp_path / "modeling_asvd_q.py").read_bytes() == Path(modeling.__file__).read_bytes()
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, trust_remote_code=True, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(loaded(TOKENS).logits, expected, rtol=0, atol=0)
    for layer, rank in config["truncation_ranks"].items():
        assert loaded.get_submodule(layer).BLinear.out_features == rank


@pytest.mark.parametrize(("name", "options"), [FAMILIES[0], FAMILIES[-2], FAMILIES[-1]])
def test_the_model_without_its_head(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = factorised(name, options)
    model.save_pretrained(tmp_path)
    base = model.config_class.__mro__[1]
    assert modeling.register(base) == f"asvd_q_{base.model_type}"
    body, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(body).__module__ == modeling.__name__  # registered, so no remote code was run
    assert not info["missing_keys"]
    expected = model.base_model(TOKENS).last_hidden_state
    torch.testing.assert_close(body(TOKENS).last_hidden_state, expected, rtol=0, atol=0)


def test_saving_what_auto_classes_loaded_keeps_it_loadable(tmp_path: Path) -> None:
    factorised("LlamaForCausalLM", SMALL).save_pretrained(tmp_path / "first")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "first", trust_remote_code=True
    )
    model.save_pretrained(tmp_path / "second")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "second", trust_remote_code=True
    )
    torch.testing.assert_close(again(TOKENS).logits, model(TOKENS).logits, rtol=0, atol=0)
    files = ["config.json", "model.safetensors", "modeling_asvd_q.py"]
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_a_checkpoint_as_the_authors_of_asvd_wrote_them(tmp_path: Path) -> None:
    model = factorised("LlamaForCausalLM", SMALL)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {"model_type": "llama"}
    config["auto_map"] = {"AutoConfig": "configuration_asvd_llama.ASVDLlamaConfig"}
    path.write_text(json.dumps(config))
    loaded = modeling.AsvdQLlamaForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits, rtol=0, atol=0)


def test_classes_are_made_once_and_only_for_what_transformers_has() -> None:
    assert modeling.AsvdQLlamaModel is modeling.AsvdQLlamaModel
    assert modeling.AsvdQLlamaForCausalLM.config_class is modeling.AsvdQLlamaConfig
    assert modeling.AsvdQLlamaConfig().truncation_ranks == {}
    for name in ("AsvdQNoSuchModel", "AsvdQAutoModel", "LlamaConfig"):
        with pytest.raises(AttributeError, match=name):
            getattr(modeling, name)


def test_auto_map_names_classes_that_exist() -> None:
    found = modeling.auto_map(transformers.GPT2Config)
    assert found == {
        "AutoConfig": "modeling_asvd_q.AsvdQGPT2Config",
        "AutoModel": "modeling_asvd_q.AsvdQGPT2Model",
        "AutoModelForCausalLM": "modeling_asvd_q.AsvdQGPT2LMHeadModel",
    }


def test_swap_keeps_device_type_and_mode_and_replaces_inside_a_prefix() -> None:
    block = nn.ModuleDict(
        {"q": nn.Linear(8, 6, bias=True, device="meta", dtype=torch.bfloat16), "c": Conv1D(10, 8)}
    ).eval()
    ranks = {"model.layers.0.q": 2, "model.layers.0.c": 3, "model.layers.1.q": 4}
    swap_factors(block, ranks, "model.layers.0")
    q, c = block.get_submodule("q"), block.get_submodule("c")
    assert isinstance(q, LowRankLinear)
    assert isinstance(c, LowRankLinear)
    assert [tuple(p.shape) for p in q.parameters()] == [(2, 8), (6, 2), (6,)]
    assert [tuple(p.shape) for p in c.parameters()] == [(3, 8), (10, 3), (10,)]
    assert q.ALinear.weight.is_meta
    assert q.ALinear.bias.dtype == torch.bfloat16
    assert not q.training


def test_swap_refuses_what_it_cannot_replace() -> None:
    module = nn.ModuleDict({"q": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    with pytest.raises(ValueError, match="k is no layer"):
        swap_factors(module, {"k": 2})
    with pytest.raises(ValueError, match="norm is a LayerNorm"):
        swap_factors(module, {"norm": 2})
