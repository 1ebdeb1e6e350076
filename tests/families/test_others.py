"""Architectures that nothing was written for: they work like the others, or are refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    CLIPVisionConfig,
    Gemma3TextConfig,
    LlamaConfig,
    SiglipVisionConfig,
)

from asvd_q.errors import ExportError
from asvd_q.pipeline import export_run, run
from asvd_q.recipe import ExportSection, load_recipe
from tests.cli.runner import command
from tests.families.columns import COLUMNS, Column, export_section, write_recipe
from tests.families.models import MODELS, save_model

_LLAMA = MODELS["llama"][1]
_OLDER = {"vocab_size": 320, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_SMALL = _OLDER | {"intermediate_size": 256, "max_position_embeddings": 256}

WORKING: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama with biases": ("LlamaForCausalLM", _LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "Gemma": ("GemmaForCausalLM", _LLAMA | {"head_dim": 64, "tie_word_embeddings": True}),
    "Gemma 3 (text)": (
        "Gemma3ForCausalLM",
        _LLAMA
        | {
            "head_dim": 64,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "tie_word_embeddings": True,
        },
    ),
    # A number for every layer that is a buffer, and in the files.
    "Gemma 4 (text)": (
        "Gemma4ForCausalLM",
        _LLAMA
        | {
            "head_dim": 32,
            "global_head_dim": 32,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "Phi": ("PhiForCausalLM", _SMALL),
    "StableLM": ("StableLmForCausalLM", _LLAMA | {"use_qkv_bias": True}),
    "GPT-J": (
        "GPTJForCausalLM",
        {
            "vocab_size": 320,
            "n_embd": 128,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 256,
            "rotary_dim": 16,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "BLOOM": (
        "BloomForCausalLM",
        {"vocab_size": 320, "hidden_size": 128, "n_layer": 2, "n_head": 4},
    ),
    "Falcon": ("FalconForCausalLM", _OLDER),
    "Falcon (ALiBi)": ("FalconForCausalLM", _OLDER | {"alibi": True}),
    "Starcoder2": ("Starcoder2ForCausalLM", _LLAMA | {"sliding_window": 16}),
    "MPT": (
        "MptForCausalLM",
        {"vocab_size": 320, "d_model": 128, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    ),
    # A head that is tied and has a bias of its own.
    "BERT as a decoder": ("BertLMHeadModel", _SMALL | {"is_decoder": True}),
}

_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4, "num_experts": 4}
_ENCODER = {"vocab_size": 320, "d_model": 128, "num_layers": 2, "num_heads": 4, "d_ff": 256}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "Mixtral": (
        "MixtralForCausalLM",
        _LLAMA | _EXPERTS,
        r"mixture of experts \(MixtralForCausalLM\) with a tensor for every expert",
    ),
    "Qwen3-MoE": (
        "Qwen3MoeForCausalLM",
        _LLAMA | _EXPERTS | {"moe_intermediate_size": 64},
        r"mixture of experts \(Qwen3MoeForCausalLM\)",
    ),
    "BERT": ("BertForMaskedLM", _SMALL, r"an encoder \(BertForMaskedLM\)"),
    "T5": (
        "T5ForConditionalGeneration",
        _ENCODER | {"d_kv": 32},
        r"an encoder and a decoder \(T5ForConditionalGeneration\)",
    ),
    "BART": (
        "BartForConditionalGeneration",
        {
            "vocab_size": 320,
            "d_model": 128,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 256,
            "decoder_ffn_dim": 256,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
        },
        r"an encoder and a decoder \(BartForConditionalGeneration\)",
    ),
    "Mamba": (
        "MambaForCausalLM",
        {"vocab_size": 320, "hidden_size": 128, "num_hidden_layers": 2, "state_size": 8},
        r"a MambaForCausalLM, which keeps a recurrent state",
    ),
    "RWKV": (
        "RwkvForCausalLM",
        {"vocab_size": 320, "hidden_size": 128, "num_hidden_layers": 2},
        r"a RwkvForCausalLM, which keeps a recurrent state",
    ),
    "RecurrentGemma": (
        "RecurrentGemmaForCausalLM",
        _SMALL
        | {
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "lru_width": 128,
            "attention_window_size": 16,
        },
        r"a RecurrentGemmaForCausalLM, which keeps a recurrent state",
    ),
    "LLaVA": (
        "LlavaForConditionalGeneration",
        {
            "text_config": LlamaConfig(**_LLAMA),
            "vision_config": CLIPVisionConfig(
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                image_size=28,
                patch_size=14,
            ),
            "image_token_index": 5,
        },
        r"a model of more than text \(LlavaForConditionalGeneration\)",
    ),
    "Gemma 3": (
        "Gemma3ForConditionalGeneration",
        {
            "text_config": Gemma3TextConfig(**_LLAMA, head_dim=64),
            "vision_config": SiglipVisionConfig(
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                image_size=28,
                patch_size=14,
            ),
            "mm_tokens_per_image": 4,
            "image_token_index": 5,
        },
        r"a model of more than text \(Gemma3ForConditionalGeneration\)",
    ),
    "sequence classifiers": (
        "LlamaForSequenceClassification",
        _LLAMA,
        r"has no weight called lm_head\.weight",
    ),
}

ONLY_FACTORS = ("Falcon", "Falcon (ALiBi)")
"""Whose dense layers have a class of their own, which optimum passes over: transformers would leave
them without weights."""

NO_GRAPH = {
    "Falcon (ALiBi)": "it computes mul in bfloat16",
    "MPT": "torch cannot trace this architecture to ONNX",
}
"""What is said of a graph: one would compute in a type that ONNX Runtime has no kernels for, the
other is not traced with any number of tokens."""

NO_GRAPH_KNOWN: dict[str, tuple[str, dict[str, Any], str]] = {
    "Falcon (ALiBi)": (*WORKING["Falcon (ALiBi)"], NO_GRAPH["Falcon (ALiBi)"]),
    "LFM2": (
        "Lfm2ForCausalLM",
        _LLAMA | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        "it does not run without values",
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        _LLAMA | _EXPERTS | {"head_dim": 32},
        "it does not run without values",
    ),
    "dynamic NTK": (
        "LlamaForCausalLM",
        _LLAMA | {"rope_parameters": _DYNAMIC},
        "its rotary embedding (rope_type: dynamic)",
    ),
}
"""What is said of a graph before any work: class, options, message."""


@pytest.mark.parametrize("name", WORKING)
def test_an_architecture_that_nothing_was_written_for(name: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", *WORKING[name])
    _prove(tmp_path, model, "asvd", "transformers")


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKING)
def test_its_codes(name: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", *WORKING[name])
    if name in NO_GRAPH:
        with pytest.raises(ExportError, match=NO_GRAPH[name]):
            _prove(tmp_path, model, "asvd-gptq", "onnx")
    else:
        assert _prove(tmp_path, model, "asvd-gptq", "onnx") < 1e-5
    _prove(tmp_path, model, "asvd-gptq", "gptq")
    options = {"loader": "gptqmodel"} if name in ONLY_FACTORS else {}
    _prove(tmp_path, model, "rtn", "gptq", **options)


@pytest.mark.parametrize("name", ONLY_FACTORS)
def test_codes_for_a_class_of_its_own_are_refused_before_work(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "model", *WORKING[name])
    nf4 = Column({"quantize": {"method": "nf4"}}, ("bitsandbytes",))
    columns = {"gptq": COLUMNS["rtn"], "compressed-tensors": COLUMNS["rtn"], "bitsandbytes": nf4}
    for wanted, column in (columns | {"peft": COLUMNS["correct"]}).items():
        recipe = write_recipe(tmp_path, model, column, export=[{"format": wanted}])
        found = command(capsys, "run", recipe).message
        assert re.search(rf"the {wanted} exporter cannot hold transformer.* is a Falcon", found)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NO_GRAPH_KNOWN)
def test_a_model_without_a_graph_is_refused_before_work(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_class, options, message = NO_GRAPH_KNOWN[name]
    model = save_model(tmp_path / "model", model_class, options)
    recipe = write_recipe(tmp_path, model, COLUMNS["asvd"], export=[{"format": "onnx"}])
    found = command(capsys, "run", recipe).message
    assert f"the onnx exporter cannot hold the model: {message}" in found
    assert not (tmp_path / "run").exists()
    entries = json.loads(command(capsys, "plan", recipe, "--json").out)["exporters"]
    refusals = {entry["exporter"]: entry["refusal"] for entry in entries}
    assert message in refusals["onnx"]
    assert refusals["transformers"] is None


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_class, options, message = REFUSED[name]
    model = save_model(tmp_path / "model", model_class, options)
    recipe = write_recipe(tmp_path, model, COLUMNS["asvd"])
    for verb in ("plan", "run"):
        found = command(capsys, verb, recipe).message
        assert re.search(message, found), found
        assert str(model) in found
    assert not (tmp_path / "run").exists()


def test_a_mixture_in_one_tensor_says_what_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32}
    model = save_model(tmp_path / "model", "GptOssForCausalLM", options)
    recipe = write_recipe(tmp_path, model, COLUMNS["asvd"])
    experts = 2 * 4 * (128 * 512 + 256 * 128)
    others = 2 * 4 * (512 + 128) + 2 * 4 * 128  # the experts' biases, and the router
    layers = 2 * (2 * 128 * 128 + 2 * 64 * 128)
    share = (experts + others) / (experts + others + layers)
    line = (
        "left as they are, being no linear layers: mlp.experts.down_proj, "
        "mlp.experts.down_proj_bias, mlp.experts.gate_up_proj, mlp.experts.gate_up_proj_bias, "
        f"mlp.router.weight, {share:.1%} of the weights of the blocks"
    )
    assert f"warning: {line}" in command(capsys, "plan", recipe).out.splitlines()
    content = json.loads(command(capsys, "plan", recipe, "--json").out)
    assert sum(content["untouched"].values()) == experts + others
    record = run(load_recipe(recipe), _silent)
    assert line in record.warnings
    assert len(record.layers) == 8


def _prove(folder: Path, model: Path, name: str, format: str, **options: str) -> float:
    """Carry out a column's recipe and one export of it; the proof's relative error."""
    column: Column = COLUMNS[name]
    record = run(load_recipe(write_recipe(folder / name, model, column)), _silent)
    assert record.warnings == ()
    section = ExportSection.model_validate(export_section(column, format) | options)
    proof = export_run(folder / name / "run", section).proof
    assert proof.status == "proven"
    assert proof.relative_error is not None
    return proof.relative_error


def _silent(stage: str, done: int, total: int) -> None:
    pass
