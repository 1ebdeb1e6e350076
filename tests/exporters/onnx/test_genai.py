"""Artefacts in ONNX Runtime GenAI, from the configuration that lies beside the graph."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx_ir
import onnxruntime_genai as genai
import pytest
import torch

from asvd_q.evaluation.generation import generate
from asvd_q.models import SourceModel
from asvd_q.plan import QuantSpec
from asvd_q_exporters.onnx import OnnxOptions
from asvd_q_exporters.onnx.genai import graph_facts
from tests.exporters.onnx.conftest import Export, export
from tests.exporters.onnx.genai_runs import assert_near, assert_same, in_genai, untouched
from tests.exporters.sizes import assert_sizes
from tests.families.models import MODELS, save_model
from tests.support import WREN, hand_made_store

EXAMPLE = Path(__file__).parents[3] / "examples" / "genai_stream.py"
PROMPT = "The string method returns"
FAMILIES = (
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "phi3",
    "phi3-longrope",
    "gpt2",
    "opt",
    "gpt-neox",
)


@pytest.fixture(scope="module")
def wren(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The bundled model in 4 bits, with its tokenizer."""
    folder = tmp_path_factory.mktemp("wren")
    source = SourceModel.open(str(WREN))
    spec = QuantSpec(bits=4, group_size=32)
    store = hand_made_store(folder / "store", source, lambda name, shape: (None, spec))
    return export(store, folder / "onnx", OnnxOptions())


def test_tokens_and_logits_are_those_of_onnx_runtime(wren: Export) -> None:
    ids = wren.store.source.tokenizer(PROMPT)["input_ids"]
    found, logits = in_genai(wren.folder, [ids], 32)
    runner = wren.exporter.open(wren.folder)
    assert_near(logits[0], runner.forward(torch.tensor([ids]))[0][0].numpy())
    assert found == [list(generate(runner, ids, max_new_tokens=32))]


def test_the_example_streams_the_text(wren: Export) -> None:
    tokenizer = wren.store.source.tokenizer
    ids = tokenizer(PROMPT)["input_ids"]
    command = [sys.executable, EXAMPLE, wren.folder, PROMPT, "--tokens", "24"]
    ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert ended.returncode == 0, ended.stderr
    tokens = generate(wren.exporter.open(wren.folder), ids, max_new_tokens=24, stop=frozenset({1}))
    assert ended.stdout == tokenizer.decode(list(tokens), skip_special_tokens=True) + "\n"
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.parametrize("text", ["naïve café", "日本語 🙂", "  two  spaces\n\tand a tab", "x"])
def test_its_tokenizer_is_ours(wren: Export, text: str) -> None:
    theirs, ours = genai.Tokenizer(genai.Model(str(wren.folder))), wren.store.source.tokenizer
    ids = ours(text)["input_ids"]
    assert theirs.encode(text).tolist() == ids
    stream = theirs.create_stream()
    assert "".join(stream.decode(token) for token in ids) == ours.decode(ids) == text


def test_prompts_of_different_lengths_in_one_batch(wren: Export) -> None:
    """It pads at the right, masks that, and counts positions on from each prompt's own length."""
    tokenizer = wren.store.source.tokenizer
    prompts = [tokenizer(text)["input_ids"] for text in (PROMPT, "A list is", "def")]
    together, _ = in_genai(wren.folder, prompts, 12)
    assert together == [in_genai(wren.folder, [prompt], 12)[0][0] for prompt in prompts]


def test_a_prompt_almost_as_long_as_the_longest_text(wren: Export) -> None:
    length = wren.store.source.config.max_position_embeddings
    ids = torch.randint(2, 8192, (length - 5,), generator=torch.Generator().manual_seed(0)).tolist()
    (found,), _ = in_genai(wren.folder, [ids], 32)
    runner = wren.exporter.open(wren.folder)
    assert found == list(generate(runner, ids, max_new_tokens=5))


def test_a_model_without_a_tokenizer_continues_ids(mixed: Export) -> None:
    with pytest.raises(RuntimeError, match="tokenizer"):
        genai.Tokenizer(genai.Model(str(mixed.folder)))
    assert_same(mixed, list(range(3, 20)))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_runs(family: str, tmp_path: Path) -> None:
    model_class, options = MODELS[family]
    made = untouched(save_model(tmp_path / "model", model_class, options), tmp_path, OnnxOptions())
    assert_same(made, list(range(5, 45)))
    prompts = [list(range(5, 13)), list(range(20, 25))]
    together, _ = in_genai(made.folder, prompts, 6)
    assert together == [in_genai(made.folder, [prompt], 6)[0][0] for prompt in prompts]
    written = json.loads((made.folder / "genai_config.json").read_text())["model"]["decoder"]
    facts = graph_facts(onnx_ir.load(made.folder / "model.onnx"))
    assert facts is not None
    assert written["head_size"] == facts.head_size == options.get("head_dim", 32)
    assert_sizes(made.exporter, made.store, made.folder)


@pytest.mark.slow
def test_half_precision(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", *MODELS["llama"])
    made = untouched(folder, tmp_path, OnnxOptions(dtype="float16"))
    assert_same(made, list(range(5, 45)))


@pytest.mark.slow
def test_longrope_starts_over_where_transformers_does(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model_class, options = MODELS["phi3-longrope"]
    rope = options["rope_parameters"] | {"original_max_position_embeddings": 4096}
    options = options | {
        "num_hidden_layers": 1,
        "max_position_embeddings": 8192,
        "original_max_position_embeddings": 4096,
        "rope_parameters": rope,
        "eos_token_id": None,
    }
    made = untouched(save_model(tmp_path / "model", model_class, options), tmp_path, OnnxOptions())
    ids = torch.randint(3, 320, (1, 4090), generator=torch.Generator().manual_seed(0))
    (found,), _ = in_genai(made.folder, ids.tolist(), 16)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    expected = model.generate(ids, max_new_tokens=16, do_sample=False)[0, 4090:].tolist()
    assert found == expected
    kept = generate(made.exporter.open(made.folder), ids[0].tolist(), max_new_tokens=16)
    assert list(kept) != expected  # so that it shows
