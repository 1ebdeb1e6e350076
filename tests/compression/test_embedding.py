"""Embedding and head in codes: what is chosen, what the blocks see of it, and what runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asvd_q.evaluation.runners import model_runner
from asvd_q.models import SourceModel
from asvd_q.models.skeleton import build_skeleton
from asvd_q.plan import QuantSpec
from asvd_q.quantization import quantize
from asvd_q.statistics.collectors import SiteStatistics
from asvd_q.store import Store
from tests.compression.job import WINDOWS, compress_to, hashes
from tests.models.families import plain_model, save_family
from tests.support import tiny_llama

NAME = "model.embed_tokens"
RTN4 = {"method": "rtn", "bits": 4, "group_size": 16}
MSE = QuantSpec(method="rtn", bits=4, group_size=16, clip="mse")
GPTQ = {"method": "gptq", "bits": 3, "group_size": 16}


def codes_of(store: Store, name: str) -> Tensor:
    return store.layer(name).weights["weight"].dequantize()


def head_gram(folder: Path, *, codes: Store | None = None) -> Tensor:
    """E[x xᵀ] of what reaches the head, float64, of the dense model or of one with these codes."""
    model = plain_model(folder).double()
    with torch.no_grad():
        for layer in [] if codes is None else codes.layers():
            if layer.record.name != "lm_head":
                weight = model.get_parameter(f"{layer.record.name}.weight")
                weight.copy_(layer.weights["weight"].dequantize())
        seen: list[Tensor] = []
        head = model.get_output_embeddings()
        head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(WINDOWS, use_cache=False)
    inputs = seen[0].flatten(0, -2)
    return inputs.T @ inputs / len(inputs)


def output_error(weight: Tensor, codes: Tensor, gram: Tensor) -> float:
    weight, error = weight.double(), codes.double() - weight.double()
    return float(((error @ gram * error).sum() / (weight @ gram * weight).sum()).sqrt())


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_an_embedding_is_rounded_with_the_best_ranges(
    family: str, tied: bool, calibrated: bool, tmp_path: Path
) -> None:
    model = save_family(family, tmp_path / "model", tied=tied)
    windows = WINDOWS if calibrated else None
    quantize_ = RTN4 | {"embedding": {}}
    store = compress_to(tmp_path / "store", model, quantize=quantize_, windows=windows)
    record = store.records()[0]
    weight = store.source.tensor(f"{record.name}.weight")
    expected = quantize(weight, MSE)
    assert torch.equal(codes_of(store, record.name), expected.dequantize())
    assert record.bytes_after == store.plan.layers[0].predicted_bytes == expected.nbytes
    assert (record.role, record.tied, record.block) == (
        "embedding",
        "lm_head" if tied else None,
        None,
    )
    error = (expected.dequantize().double() - weight.double()).norm() / weight.double().norm()
    assert record.errors == {"quantize": pytest.approx(float(error), rel=1e-9)}
    assert record.error_basis == "weight"
    assert store.finished_plan.predicted_bytes == store.plan.predicted_bytes


@pytest.mark.parametrize("sequential", [False, True])
def test_an_untied_head_is_chosen_for_what_reaches_it(sequential: bool, tmp_path: Path) -> None:
    model = save_family("llama", tmp_path / "model")
    given = GPTQ | {"head": {"bits": 4}, "embedding": {}}
    store = compress_to(tmp_path / "store", model, quantize=given, sequential=sequential)
    assert store.blocks() == ["embedding", 0, 1, None]
    gram = head_gram(model, codes=store if sequential else None)
    weight = store.source.tensor("lm_head.weight")
    record = store.records()[-1]
    assert record.name == "lm_head"
    assert record.quantization["weight"] == QuantSpec(method="gptq", bits=4, group_size=16)
    mine = output_error(weight, codes_of(store, "lm_head"), gram)
    assert record.errors["quantize"] == pytest.approx(mine, rel=1e-4)
    assert record.error_basis == "output"
    rounded = output_error(weight, quantize(weight, MSE).dequantize(), gram)
    assert mine < rounded


@pytest.mark.parametrize("sequential", [False, True])
def test_gptq_of_a_tied_matrix_is_for_the_dense_models_head(
    sequential: bool, tmp_path: Path
) -> None:
    model = save_family("llama", tmp_path / "model", tied=True)
    store = compress_to(
        tmp_path / "store", model, quantize=GPTQ | {"head": {}}, sequential=sequential
    )
    assert store.blocks() == ["embedding", 0, 1]
    gram = head_gram(model)
    weight = store.source.tensor(f"{NAME}.weight")
    record = store.records()[0]
    mine = output_error(weight, codes_of(store, NAME), gram)
    assert record.errors["quantize"] == pytest.approx(mine, rel=1e-4)
    spec = QuantSpec.model_validate(GPTQ)
    found = quantize(weight.double(), spec, gram).dequantize()
    assert float((found == codes_of(store, NAME)).float().mean()) > 0.99  # but for rounding
    plain = QuantSpec(method="rtn", bits=3, group_size=16, clip="mse")
    assert mine < output_error(weight, quantize(weight, plain).dequantize(), gram)


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_blocks_are_told_of_the_embeddings_codes(
    tied: bool, refit: bool, tmp_path: Path, seen: dict[str, SiteStatistics]
) -> None:
    model = save_family("llama", tmp_path / "model", tied=tied)
    given = GPTQ | {"embedding": {"bits": 2}, "refit": refit}
    plain = plain_model(model).double()
    for sequential in (True,) if refit else (False, True):
        store = compress_to(
            tmp_path / str(sequential), model, quantize=given, sequential=sequential
        )
        with torch.no_grad():
            rows = store.source.tensor(f"{NAME}.weight").double()
            expected = {False: rows[WINDOWS], True: codes_of(store, NAME).double()[WINDOWS]}
            norm = plain.get_submodule("model.layers.0.input_layernorm")
            grams = {key: gram_of(norm(value)) for key, value in expected.items()}
        found = seen["model.layers.0.self_attn.q_proj"]
        torch.testing.assert_close(found.gram, grams[sequential], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found.gram, grams[not sequential], rtol=1e-2)
        if refit:
            assert found.dense is not None
            torch.testing.assert_close(found.dense.gram, grams[False], rtol=1e-4, atol=1e-4)


def gram_of(activation: Tensor) -> Tensor:
    inputs = activation.flatten(0, -2)
    return inputs.T @ inputs / len(inputs)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
def test_a_store_runs_with_its_codes(family: str, tied: bool, stream: bool, tmp_path: Path) -> None:
    model = save_family(family, tmp_path / "model", tied=tied)
    given = RTN4 | {"embedding": {}, "head": {}}
    store = compress_to(tmp_path / "store", model, quantize=given, windows=None)
    plain = plain_model(model)
    skeleton = build_skeleton(SourceModel.open(str(model)))
    with torch.no_grad():
        for layer in store.layers():
            ref = skeleton.by_name[layer.record.name]
            parameter = plain.get_parameter(ref.tensor_name)
            ref.take(parameter).copy_(layer.weights["weight"].dequantize())
        expected = plain(WINDOWS, use_cache=False).logits
    assert (plain.get_input_embeddings().weight is plain.get_output_embeddings().weight) is tied
    runner = model_runner(store.source, store.replaced, stream=stream)
    found = next(iter(runner.score([WINDOWS])))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len({record.name for record in store.records() if record.block is None}) == 2 - tied


def resumable(*, tied: bool) -> dict[str, Any]:
    return {
        "sequential": True,
        "quantize": GPTQ | {"embedding": {}, "head": {}},
        "decompose": None if tied else {"ranks": {"up_proj": 9}},
    }


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_killed_between_embedding_and_first_block(tied: bool, tmp_path: Path) -> None:
    model = tiny_llama(
        tmp_path / "model", layers=2, hidden=32, intermediate=48, vocabulary=64, tied=tied
    )
    chosen = resumable(tied=tied)
    undisturbed = compress_to(tmp_path / "undisturbed", model, **chosen)
    folder = tmp_path / "store"
    arguments = [str(folder), str(model), "after", "0", json.dumps(chosen)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.compression.killed", *arguments],
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert [path.name for path in folder.glob("blocks/*.json")] == ["embedding.json"]
    before = hashes(folder)
    found = compress_to(folder, model, **chosen)
    assert hashes(found.folder) == hashes(undisturbed.folder)
    assert before.items() <= hashes(folder).items()


@pytest.mark.parametrize("damaged", ["embedding", "00000", "outside"])
def test_a_damaged_part_is_made_again_alike(damaged: str, tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model", layers=2, hidden=32, intermediate=48, vocabulary=64)
    store = compress_to(tmp_path / "store", model, **resumable(tied=False))
    before = hashes(store.folder)
    (store.folder / "blocks" / f"{damaged}.safetensors").write_bytes(b"")
    compress_to(tmp_path / "store", model, **resumable(tied=False))
    assert hashes(store.folder) == before


def test_a_tied_matrix_whose_file_has_the_head_alone(tmp_path: Path) -> None:
    """Some files keep the shared matrix under the head's name."""
    from safetensors.torch import load_file, save_file

    model = save_family("llama", tmp_path / "model", tied=True)
    tensors = load_file(model / "model.safetensors")
    weight = tensors.pop(f"{NAME}.weight")
    save_file({**tensors, "lm_head.weight": weight}, model / "model.safetensors")
    store = compress_to(tmp_path / "store", model, quantize=RTN4 | {"embedding": {}}, windows=None)
    assert torch.equal(codes_of(store, NAME), quantize(weight, MSE).dequantize())
