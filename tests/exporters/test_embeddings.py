"""Embeddings and heads in codes, in formats of checkpoints: refused, or written as floats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from asvd_q.artefact import Exporter
from asvd_q.budget.counting import Count
from asvd_q.exporter_registry import exporter_class
from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q.sizes import predict_files
from asvd_q_exporters.transformers import TransformersExporter, TransformersOptions
from tests.exporters.checkpoints import (
    assert_reads_back,
    assert_runs,
    export,
    family,
    store_of,
)

INT4 = QuantSpec(bits=4, group_size=32)
NF4 = QuantSpec(method="nf4", group_size=32)
LLAMA = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
CHECKPOINTS = ("transformers", "gptq", "bitsandbytes", "compressed-tensors", "peft")


def embedding(spec: QuantSpec | None, tied: str | None = None) -> LayerPlan:
    return LayerPlan(
        name="model.embed_tokens",
        kind="embed_tokens",
        block=None,
        shape=(128, 64),
        quantization={"weight": spec},
        predicted_bytes=4 * 128 * 64 if spec is None else 0,
        role="embedding",
        tied=tied,
    )


def inner(spec: QuantSpec) -> LayerPlan:
    return LayerPlan(
        name="model.layers.0.q", kind="q", block=0, shape=(64, 64), quantization={"weight": spec}
    )


def corrected() -> LayerPlan:
    return LayerPlan(
        name="model.layers.0.q",
        kind="q",
        block=0,
        shape=(64, 64),
        form="correction",
        rank=8,
        quantization={"weight": INT4, "A": None, "B": None},
    )


def exporter(name: str, **options: Any) -> Exporter:
    made = exporter_class(name)
    return made(made.options_model.model_validate(options))


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("tied", [None, "lm_head"])
def test_an_embedding_in_codes_is_refused(name: str, tied: str | None) -> None:
    made = exporter(name)
    beside = {"peft": corrected(), "bitsandbytes": inner(NF4)}.get(name, inner(INT4))
    plan = Plan(float_type="float32", layers=(embedding(INT4, tied), beside))
    found = {refusal.layer: refusal for refusal in made.can_express(plan)}
    refusal = found["model.embed_tokens"]
    if name == "transformers":
        assert "leave it in floating point, or set dequantize: true" in refusal.instead
    else:
        assert set(found) == {"model.embed_tokens"}
        assert "codes of linear layers alone" in refusal.reason
        assert "leave quantize.embedding" in refusal.instead
        assert "export it with transformers and dequantize: true" in refusal.instead
        assert ("quantize.head" in refusal.instead) is (tied is not None)
    floats = plan.model_copy(update={"layers": (embedding(None, tied), beside)})
    if name != "transformers":
        assert made.can_express(floats) == []
    assert Count("float32", made).of_layer(embedding(INT4, tied)) is None
    assert Count("float32", made).of_layer(embedding(None, tied)) == 4 * 128 * 64


@pytest.mark.parametrize("name", ["gptq", "peft"])
def test_a_head_in_codes_is_refused(name: str) -> None:
    head = LayerPlan(
        name="lm_head", kind="lm_head", block=None, shape=(128, 64), quantization={"weight": INT4}
    )
    beside = corrected() if name == "peft" else inner(INT4)
    plan = Plan(float_type="float32", layers=(beside, head))
    [refusal] = exporter(name).can_express(plan)
    assert refusal.layer == "lm_head"
    assert "transformer blocks alone" in refusal.reason


@pytest.mark.parametrize("model", ["LlamaForCausalLM", "GPT2LMHeadModel"])
@pytest.mark.parametrize("tied", [False, True])
def test_floats_that_codes_stand_for(model: str, tied: bool, tmp_path: Path) -> None:
    options = (GPT2 if "GPT2" in model else LLAMA) | {"tie_word_embeddings": tied}
    source = family(tmp_path / "model", model, **options)
    head = {} if tied else {"weight": INT4}
    store = store_of(
        tmp_path / "store",
        source,
        lambda name: (None, head if name == "lm_head" else {"weight": INT4}),
        embedding=INT4,
    )
    made = TransformersExporter(TransformersOptions(dequantize=True))
    assert made.can_express(store.plan) == []
    folder = export(made, store, tmp_path / "artefact")
    predicted = predict_files(made, store.plan, source)
    assert sum(predicted.weights.values()) == (folder / "model.safetensors").stat().st_size
    assert_reads_back(made, store, folder)
    assert_runs(made, store, folder, within=1e-6)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows, logits = again.get_input_embeddings().weight, again.get_output_embeddings().weight
    assert (rows is logits) is tied
    name = store.plan.layers[0].name
    assert torch.equal(rows, store.layer(name).weights["weight"].dequantize())


@pytest.mark.parametrize(
    ("name", "options", "spec"),
    [
        ("onnx", {"accuracy_level": 1}, INT4),
        ("compressed-tensors", {}, INT4),
        ("bitsandbytes", {}, NF4),
    ],
)
def test_an_untied_head_in_codes_of_a_format_that_holds_it(
    name: str, options: dict[str, Any], spec: QuantSpec, tmp_path: Path
) -> None:
    source = family(tmp_path / "model", "LlamaForCausalLM", tie_word_embeddings=False, **LLAMA)
    store = store_of(tmp_path / "store", source, lambda layer: (None, {"weight": spec}))
    assert store.plan.layers[-1].name == "lm_head"
    made = exporter(name, **options)
    assert made.can_express(store.plan) == []
    folder = export(made, store, tmp_path / "artefact")
    assert_reads_back(made, store, folder)
    assert_runs(made, store, folder, within=5e-3)
