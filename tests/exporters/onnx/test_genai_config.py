"""What is written of a model into `genai_config.json`; nothing is traced or run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import pytest
import transformers

from asvd_q.errors import ExportError
from asvd_q.models import SourceModel
from asvd_q_exporters.onnx.decoders import AttentionForm
from asvd_q_exporters.onnx.genai import (
    GraphFacts,
    expected_facts,
    genai_config,
    genai_text,
    graph_facts,
)
from tests.families.models import MODELS
from tests.support import tiny_llama

FACTS = GraphFacts(("input_ids", "attention_mask"), blocks=3, heads=1, head_size=48, vocabulary=320)


def written(
    family: str = "llama", generation: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    model_class, options = MODELS[family]
    config = getattr(transformers, model_class).config_class(**options | changes)
    return genai_config(config, generation or {}, FACTS, share_buffer=False)


def test_what_the_graph_says_is_taken_from_the_graph() -> None:
    model = written("gemma2")["model"]
    decoder = model["decoder"]
    assert (decoder["head_size"], decoder["num_key_value_heads"]) == (48, 1)
    assert (decoder["num_hidden_layers"], model["vocab_size"]) == (3, 320)
    assert (decoder["num_attention_heads"], decoder["hidden_size"]) == (4, 128)
    assert "position_ids" not in decoder["inputs"]
    assert model["context_length"] == 256


def test_every_end_of_text_is_one() -> None:
    assert written()["model"]["eos_token_id"] == 2
    generation = {"eos_token_id": [7, 2, 900], "pad_token_id": 9, "bos_token_id": 4}
    model = written(generation=generation)["model"]
    assert model["eos_token_id"] == [7, 2]  # 900 is no token
    assert (model["pad_token_id"], model["bos_token_id"]) == (9, 4)


def test_a_token_is_padding_only_where_the_model_has_one() -> None:
    """GenAI reads a prompt only up to its last token that is no padding."""
    assert written(pad_token_id=None)["model"]["pad_token_id"] == 2  # its end of text
    model = written(pad_token_id=None, eos_token_id=None, bos_token_id=None)["model"]
    assert (model["pad_token_id"], model["eos_token_id"]) == (-1, [])
    assert "bos_token_id" not in model


def test_sampling_is_the_models_own() -> None:
    plain = written()["search"]
    assert (plain["do_sample"], plain["temperature"], plain["top_p"]) == (False, 1.0, 1.0)
    assert (plain["top_k"], plain["max_length"]) == (50, 256)
    generation = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    own = written(generation=generation)["search"]
    assert {key: own[key] for key in generation} == generation


def test_only_longrope_from_4096_tokens_is_called_phi3() -> None:
    def kind(family: str, **changes: Any) -> str:
        return str(written(family, **changes)["model"]["type"])

    assert {kind(family) for family in MODELS} == {"decoder"}
    rope = MODELS["phi3-longrope"][1]["rope_parameters"]
    longer = {"original_max_position_embeddings": 4096}
    assert kind("phi3-longrope", rope_parameters=rope | longer, **longer) == "phi3"


def test_a_buffer_is_shared_where_the_graph_allows_it() -> None:
    for share in (False, True):
        config = transformers.LlamaConfig()
        found = genai_config(config, {}, FACTS, share_buffer=share)["search"]
        assert found["past_present_share_buffer"] is share


def test_keys_and_values_of_one_shape_alone() -> None:
    assert graph_facts(graph((2, 64), (2, 64))) == GraphFacts(("input_ids",), 1, 2, 64, 100)
    assert graph_facts(graph((2, 96), (2, 64))) is None
    assert graph_facts(graph()) is None


def test_a_model_without_a_longest_text_has_none(tmp_path: Path) -> None:
    config = transformers.BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=320)
    source = SourceModel.open(str(tiny_llama(tmp_path / "model", layers=1)))
    assert genai_text(source, FACTS, share_buffer=True) is not None
    assert genai_text(source, None, share_buffer=True) is None
    source.config = config
    assert expected_facts(source, [], AttentionForm()) is None
    assert genai_text(source, FACTS, share_buffer=True) is None


def test_a_damaged_generation_config_is_named(tmp_path: Path) -> None:
    source = SourceModel.open(str(tiny_llama(tmp_path / "model", layers=1)))
    file = source.path / "generation_config.json"
    for content in ("{", "[]"):
        file.write_text(content)
        with pytest.raises(ExportError, match=r"generation_config\.json is no"):
            genai_text(source, FACTS, share_buffer=True)
    file.write_text(json.dumps({"top_k": 3}))
    text = genai_text(source, FACTS, share_buffer=True)
    assert text is not None
    assert json.loads(text)["search"]["top_k"] == 3


def graph(*caches: tuple[int, int]) -> onnx_ir.Model:
    """Token ids, past keys and values of (heads, width), logits of 100 tokens."""

    def value(name: str, dims: list[Any], kind: int = onnx.TensorProto.FLOAT) -> Any:
        return onnx.helper.make_tensor_value_info(name, kind, dims)

    inputs = [value("input_ids", ["batch", "new"], onnx.TensorProto.INT64)]
    for (heads, width), kind in zip(caches, ("key", "value"), strict=False):
        inputs.append(value(f"past_key_values.0.{kind}", ["batch", heads, "past", width]))
    outputs = [value("logits", ["batch", "new", 100])]
    made = onnx.helper.make_graph([], "g", inputs, outputs)
    return onnx_ir.from_proto(onnx.helper.make_model(made))
