"""Recipes that start from what other tools, or this one, have compressed before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asvd_q.evaluation.runners import model_runner
from asvd_q.exporting import write_rest
from asvd_q.models import SourceModel
from asvd_q.opening import open_run_store
from asvd_q.pipeline import run
from asvd_q.progress import silent
from asvd_q.recipe import load_recipe
from tests.cli.runner import command, write_recipe
from tests.models.stored.makers import (
    by_bitsandbytes,
    by_compressed_tensors,
    by_gptqmodel,
    edit,
    factorised,
    with_tokenizer,
)
from tests.support import WREN

Capture = pytest.CaptureFixture[str]

MAKERS: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "gptq": (lambda model, folder: by_gptqmodel(model, folder, bits=4, group_size=32), "4 bits"),
    "bitsandbytes": (
        lambda model, folder: by_bitsandbytes(
            model, folder, load_in_4bit=True, bnb_4bit_quant_type="nf4"
        ),
        "4 bits",
    ),
    "compressed-tensors": (
        lambda model, folder: by_compressed_tensors(
            model, folder, torch.float16, num_bits=8, strategy="channel"
        ),
        "8 bits",
    ),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizer(tmp_path_factory.mktemp("llama") / "model")


def recipe_for(folder: Path, model: Path, **sections: Any) -> Path:
    """No calibration and no decomposition, unless they are given."""
    return write_recipe(
        folder, **{"calibration": None, "decompose": None, "model": {"path": str(model)}} | sections
    )


def with_companions(model: Path, folder: Path) -> None:
    """Not every tool saves the tokenizer with the weights."""
    for file in model.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("method", MAKERS)
def test_a_quantized_source_from_end_to_end(method: str, llama: Path, tmp_path: Path) -> None:
    make, width = MAKERS[method]
    make(llama, tmp_path / "codes")
    with_companions(llama, tmp_path / "codes")
    recipe = recipe_for(
        tmp_path,
        tmp_path / "codes",
        decompose={"kept_ratio": 0.8, "scaling": "none", "rank_multiple": 8},
        quantize={"bits": 8, "group_size": 32, "exclude": ["q_proj"]},
        export=[
            {"format": "onnx"},
            {"format": "transformers", "dequantize": True},
        ],
    )
    record = run(load_recipe(recipe), silent)
    assert [artefact.proof.status for artefact in record.artefacts] == ["proven", "proven"]
    warning = next(text for text in record.warnings if "codes" in text)
    assert f"14 matrices of codes are {method} codes of {width}" in warning
    assert "codes of codes lose twice" in warning
    for artefact in record.artefacts:
        config = json.loads((tmp_path / "run" / artefact.folder / "config.json").read_text())
        assert "quantization_config" not in config
    source = SourceModel.open(str(tmp_path / "codes"))
    store = open_run_store(tmp_path / "run")
    for layer in store.records():
        weight = source.tensor(f"{layer.name}.weight").float()
        found = store.layer(layer.name).weights
        product = found["A"].dequantize() @ found["B"].dequantize()
        error = float((weight - product).norm() / weight.norm())
        assert error == pytest.approx(list(layer.errors.values())[-1], rel=1e-3)


def test_the_factors_of_a_checkpoint_keep_their_ranks(
    llama: Path, tmp_path: Path, capsys: Capture
) -> None:
    products = factorised(llama, tmp_path / "theirs", 16)
    recipe = recipe_for(tmp_path, tmp_path / "theirs", export=[{"format": "transformers"}])
    shown = command(capsys, "plan", recipe)
    assert shown.code == 0
    assert shown.out.count("already factorised at rank 16") == len(products)
    record = run(load_recipe(recipe), silent)
    assert record.warnings == ()
    assert [artefact.proof.status for artefact in record.artefacts] == ["proven"]
    store = open_run_store(tmp_path / "run")
    for layer in store.records():
        if layer.name not in products:
            assert (layer.form, layer.reason) == ("dense", None)
            continue
        assert (layer.form, layer.rank) == ("factors", 16)
        pair = store.layer(layer.name).weights
        product = pair["A"].dequantize() @ pair["B"].dequantize()
        expected = products[layer.name].float()
        assert (product - expected).norm() < 1e-3 * expected.norm()  # float16 factors
    again = run(load_recipe(tmp_path / "run/recipe.yaml"), silent)
    assert again.store_key == record.store_key
    config = json.loads((tmp_path / "run/artefacts/transformers/config.json").read_text())
    assert config["truncation_ranks"] == dict.fromkeys(products, 16)
    assert config["model_type"] == "asvd_q_llama"
    assert "asvd_llama" not in json.dumps(config["auto_map"])


def test_codes_of_the_factors_of_a_checkpoint(llama: Path, tmp_path: Path) -> None:
    """GPTQ on a published low-rank checkpoint; what comes of it is a source again."""
    products = factorised(llama, tmp_path / "theirs", 32)
    text = tmp_path / "text.txt"
    text.write_text((WREN / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    recipe = recipe_for(
        tmp_path,
        tmp_path / "theirs",
        calibration={"corpus": str(text), "samples": 2, "window": 16},
        quantize={"method": "gptq", "bits": 4, "group_size": 32},
        export=[{"format": "gptq"}],
    )
    record = run(load_recipe(recipe), silent)
    factors = [layer for layer in record.layers if layer.form == "factors"]
    assert {layer.name: layer.rank for layer in factors} == dict.fromkeys(products, 32)
    for layer in factors:
        assert all(spec is not None and spec.bits == 4 for spec in layer.quantization.values())
        assert layer.errors["decompose"] < 1e-3 < layer.errors["quantize"]
    again = SourceModel.open(str(tmp_path / "run/artefacts/gptq"))
    assert again.codes is not None
    # A and B of every factorised layer, and the layers that were left dense.
    assert again.codes.layers == len(record.layers) + len(products)
    assert {layer.name: again.rank(layer.name) for layer in factors} == dict.fromkeys(products, 32)
    second = recipe_for(tmp_path, again.path, output=str(tmp_path / "second"))
    both = run(load_recipe(second), silent)
    assert "codes of 4 bits" in both.warnings[0]
    assert {layer.name for layer in both.layers if layer.rank == 32} == set(products)


def test_what_a_store_leaves_of_a_checkpoint_of_factors_is_a_source(
    llama: Path, tmp_path: Path
) -> None:
    products = factorised(llama, tmp_path / "theirs", 16)
    run(load_recipe(recipe_for(tmp_path, tmp_path / "theirs", export=[])), silent)
    store = open_run_store(tmp_path / "run")
    rest = tmp_path / "rest"
    rest.mkdir()
    write_rest(store, rest)
    source = SourceModel.open(str(rest))
    assert not [name for name in products if f"{name}.weight" in source.tensors]
    assert source.config_fields == store.source.config_fields
    tokens = torch.arange(24).reshape(2, 12)
    matrices = {
        layer.record.name: {slot: weight.dequantize() for slot, weight in layer.weights.items()}
        for layer in store.layers()
    }
    found = model_runner(source, matrices.get).forward(tokens)[0]
    assert torch.equal(found, model_runner(store.source, store.replaced).forward(tokens)[0])


def test_a_recipe_that_decomposes_starts_from_the_products(llama: Path, tmp_path: Path) -> None:
    products = factorised(llama, tmp_path / "theirs", 16)
    recipe = recipe_for(
        tmp_path, tmp_path / "theirs", decompose={"ranks": {"up_proj": 8}, "scaling": "none"}
    )
    record = run(load_recipe(recipe), silent)
    (warning,) = record.warnings
    assert f"{len(products)} layers of theirs are stored as factors of rank 16:" in warning
    ranks = {layer.name: layer.rank for layer in record.layers if layer.rank is not None}
    assert set(ranks.values()) == {8}
    assert all(name.endswith("up_proj") for name in ranks)


def test_plan_warns_of_a_quantized_source(llama: Path, tmp_path: Path, capsys: Capture) -> None:
    by_bitsandbytes(llama, tmp_path / "codes", load_in_4bit=True)
    recipe = recipe_for(tmp_path, tmp_path / "codes", quantize={"bits": 8, "group_size": 32})
    shown = command(capsys, "plan", recipe)
    assert shown.code == 0
    assert "warning: 14 matrices of codes are bitsandbytes codes of 4 bits" in shown.out
    content = json.loads(command(capsys, "plan", recipe, "--json").out)
    assert len(content["warnings"]) == 1
    plain = json.loads(command(capsys, "plan", recipe_for(tmp_path, llama), "--json").out)
    assert plain["warnings"] == []


def test_a_source_that_lacks_a_part_of_its_codes(
    llama: Path, tmp_path: Path, capsys: Capture
) -> None:
    by_bitsandbytes(llama, tmp_path / "codes", load_in_4bit=True)
    layer = "model.layers.1.mlp.up_proj"
    edit(tmp_path / "codes", {f"{layer}.weight.absmax": None})
    message = command(capsys, "run", recipe_for(tmp_path, tmp_path / "codes")).message
    assert "model.safetensors" in message
    assert f"{layer} has no weight.absmax" in message
    assert not (tmp_path / "run").exists()


def test_generating_from_a_checkpoint_of_factors(
    llama: Path, tmp_path: Path, capsys: Capture
) -> None:
    factorised(llama, tmp_path / "theirs", 16)
    made = command(
        capsys, "generate", tmp_path / "theirs", "--prompt", "def", "--max-new-tokens", "3"
    )
    assert made.code == 0
