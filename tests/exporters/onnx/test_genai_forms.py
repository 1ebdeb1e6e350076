"""Every form of weights and of attention in ONNX Runtime GenAI, and the ends of what it takes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal

import onnx
import onnxruntime_genai as genai
import pytest
import torch

from asvd_q.evaluation.generation import generate
from asvd_q.evaluation.torch_runner import TorchRunner
from asvd_q.models import SourceModel
from asvd_q.plan import QuantSpec
from asvd_q_exporters.onnx import OnnxOptions
from asvd_q_exporters.onnx.session import LEVEL
from tests.exporters.checkpoints import family, store_of
from tests.exporters.onnx.conftest import Export, export
from tests.exporters.onnx.genai_runs import assert_same, genai_settings, in_genai, untouched
from tests.exporters.onnx.reference import reference_model, tokens
from tests.exporters.onnx.stores import eight_bit_store
from tests.exporters.onnx.test_embedding import ASYMMETRIC, NAME, SIZES
from tests.families.models import MODELS, save_model
from tests.families.test_others import NO_GRAPH, WORKING
from tests.support import hand_made_store, tiny_llama

PROMPT = tokens(1, 40, vocabulary=64)[0].tolist()
CONTEXT = 128
"""Of `tiny_llama`."""

ENDLESS = "BLOOM"
"""The one whose configuration names no longest text."""

OTHERS = {name: given for name, given in WORKING.items() if name not in NO_GRAPH} | {
    "opt-350m": MODELS["opt-350m"]
}


def test_nf4_factors(nf4_export: Export) -> None:
    types = [node.op_type for node in onnx.load(nf4_export.folder / "model.onnx").graph.node]
    assert types.count("MatMulBnb4") == 15
    assert_exact(nf4_export)


def test_standard_operators_compute_at_the_recorded_level(standard: Export) -> None:
    """The file does not say the level, and a session that is not told takes 4."""
    settings = genai_settings(standard.folder)
    assert settings["search"]["past_present_share_buffer"] is False
    assert settings["model"]["decoder"]["session_options"][LEVEL] == "0"
    assert_exact(standard)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_standard_operators_that_round_activations(
    standard: Export, tmp_path: Path, dtype: Literal["float32", "float16"]
) -> None:
    options = OnnxOptions(operators="standard", accuracy_level=4, dtype=dtype)
    assert_same(export(standard.store, tmp_path / "onnx", options), PROMPT)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 4])
def test_low_rank_factors_in_4_bits_and_half_precision(
    tmp_path: Path, level: Literal[0, 4]
) -> None:
    source = SourceModel.open(str(tiny_llama(tmp_path / "model")))
    spec = QuantSpec(bits=4, group_size=32)
    store = hand_made_store(tmp_path / "store", source, lambda name, shape: (32, spec))
    options = OnnxOptions(dtype="float16", accuracy_level=level)
    assert_same(export(store, tmp_path / "onnx", options), PROMPT)


@pytest.mark.slow
def test_3_and_5_bits_with_rounded_activations(tmp_path: Path) -> None:
    source = SourceModel.open(str(tiny_llama(tmp_path / "model")))

    def choose(name: str, shape: tuple[int, int]) -> tuple[int | None, QuantSpec]:
        bits = 3 if ".0." in name else 5
        symmetric = not name.endswith(("v_proj", "up_proj"))
        spec = QuantSpec(bits=bits, group_size=32, symmetric=symmetric)
        return (32 if "mlp" in name else None), spec

    store = hand_made_store(tmp_path / "store", source, choose)
    assert_same(export(store, tmp_path / "onnx", OnnxOptions(accuracy_level=4)), PROMPT)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 4])
def test_an_embedding_and_its_head_at_one_place_of_a_file(
    tmp_path: Path, level: Literal[0, 4]
) -> None:
    source = family(tmp_path / "model", "LlamaForCausalLM", tie_word_embeddings=True, **SIZES)
    store = store_of(tmp_path / "store", source, lambda name: (None, {}), embedding=ASYMMETRIC)
    options = OnnxOptions(external_data=True, accuracy_level=level)
    made = export(store, tmp_path / "onnx", options)
    graph = onnx.load(made.folder / "model.onnx", load_external_data=False).graph
    places = {one.name: one.external_data for one in graph.initializer}
    assert places[f"{NAME}.codes.rows"] == places[f"{NAME}.codes"] != []
    if level == 0:
        assert_exact(made)
    else:
        assert_same(made, PROMPT)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OTHERS if name != ENDLESS])
def test_a_family_that_nothing_was_written_for(name: str, tmp_path: Path) -> None:
    made = untouched(save_model(tmp_path / "model", *OTHERS[name]), tmp_path, OnnxOptions())
    assert_same(made, PROMPT)
    assert_padding_is_on_the_right(made)


@pytest.mark.slow
def test_a_family_without_a_longest_text_has_no_settings(tmp_path: Path) -> None:
    made = untouched(save_model(tmp_path / "model", *OTHERS[ENDLESS]), tmp_path, OnnxOptions())
    assert not (made.folder / "genai_config.json").exists()


@pytest.mark.slow
def test_codes_beside_plain_attention(tmp_path: Path) -> None:
    saved = save_model(tmp_path / "model", *OTHERS["GPT-J"])
    store = eight_bit_store(tmp_path / "store", saved)
    made = export(store, tmp_path / "onnx", OnnxOptions(accuracy_level=0))
    assert genai_settings(made.folder)["search"]["past_present_share_buffer"] is False
    assert_exact(made)


@pytest.mark.parametrize("name", ["mixed", "standard"])
def test_prompt_and_new_tokens_fill_the_context(name: str, request: pytest.FixtureRequest) -> None:
    """With past and present in one buffer, and without."""
    made: Export = request.getfixturevalue(name)
    assert genai_settings(made.folder)["search"]["past_present_share_buffer"] is (name == "mixed")
    runner = made.exporter.open(made.folder)
    end = genai_settings(made.folder)["model"]["eos_token_id"]
    ids = tokens(1, 2 * CONTEXT)[0].tolist()
    for new in (16, 15, 1):
        prompts = (ids[start : start + CONTEXT - new] for start in range(CONTEXT))
        texts = ((one, list(generate(runner, one, max_new_tokens=new))) for one in prompts)
        prompt, expected = next(pair for pair in texts if end not in pair[1])
        (found,), _ = in_genai(made.folder, [prompt], 32)  # which would be more than there is
        assert found == expected
        assert len(prompt) + len(found) == CONTEXT


def test_no_token_fits_behind_a_whole_context(mixed: Export) -> None:
    ids = tokens(1, CONTEXT + 1)[0].tolist()
    with pytest.raises(RuntimeError, match=r"already at max_length \(128\)"):
        in_genai(mixed.folder, [ids[:CONTEXT]], 1)
    with pytest.raises(RuntimeError, match=r"input_ids size \(129\) .*exceeds max length \(128\)"):
        in_genai(mixed.folder, [ids], 1)


def test_no_more_than_the_context_can_be_asked_for(mixed: Export) -> None:
    model = genai.Model(str(mixed.folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=CONTEXT + 1)
    with pytest.raises(RuntimeError, match=r"\(129\) cannot be greater .*context_length \(128\)"):
        genai.Generator(model, parameters)


@pytest.mark.parametrize("name", ["mixed", "standard", "nf4_export"])
def test_padding_is_hidden_on_the_right_alone(name: str, request: pytest.FixtureRequest) -> None:
    assert_padding_is_on_the_right(request.getfixturevalue(name))


def test_padding_behind_a_prompt_alone_is_text_after_the_first_new_token(mixed: Export) -> None:
    """That one comes from the last token before it; in a batch of several all of it is hidden."""
    padding = genai_settings(mixed.folder)["model"]["pad_token_id"]
    shown, hidden = PROMPT[:9], [*PROMPT[:9], padding, padding]
    (alone,), _ = in_genai(mixed.folder, [shown], 8)
    (found,), _ = in_genai(mixed.folder, [hidden], 8)
    runner = mixed.exporter.open(mixed.folder)
    logits, cache = runner.forward(torch.tensor([hidden]))
    token, expected = int(logits[0, len(shown) - 1].argmax()), []
    for _ in found:
        expected.append(token)
        logits, cache = runner.forward(torch.tensor([[token]]), cache)
        token = int(logits[0, -1].argmax())
    assert found == expected != alone
    assert in_genai(mixed.folder, [hidden, hidden], 8)[0] == [alone, alone]


def assert_exact(made: Export) -> None:
    """The same tokens in GenAI, in ONNX Runtime and in torch with the store's own matrices."""
    found = assert_same(made, PROMPT)
    torch_runner = TorchRunner(reference_model(made.store), "torch")
    assert found == list(generate(torch_runner, PROMPT, max_new_tokens=len(found)))
    assert len(set(found)) > 2  # one token over and over would hide a damaged cache


def assert_padding_is_on_the_right(made: Export) -> None:
    """Behind a short prompt it is hidden; before it, it is text."""
    padding = genai_settings(made.folder)["model"]["pad_token_id"]
    text = [token for token in PROMPT if token != padding]
    long, short = text[:13], text[20:25]
    before = [padding] * (len(long) - len(short))
    right, _ = in_genai(made.folder, [long, short], 6)
    left, _ = in_genai(made.folder, [long, before + short], 6)
    alone = [in_genai(made.folder, [prompt], 6)[0][0] for prompt in (long, short)]
    assert [upto_end(one, made) for one in right] == [upto_end(one, made) for one in alone]
    runner = made.exporter.open(made.folder)
    as_text, _ = runner.forward(torch.tensor([before + short]))
    unmasked = list(generate(runner, before + short, max_new_tokens=6))
    assert upto_end(left[1], made) == upto_end(unmasked, made)
    assert not torch.allclose(as_text[0, -1], runner.forward(torch.tensor([short]))[0][0, -1])


def upto_end(found: list[int], made: Export) -> list[int]:
    """Tokens before the end of text, behind which a batch has padding."""
    ends = genai_settings(made.folder)["model"]["eos_token_id"]
    known = ends if isinstance(ends, list) else [ends]
    return list(itertools.takewhile(lambda token: token not in known, found))
