"""Corrected layers in a checkpoint of floats: bytes, loading, and what refuses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file

from asvd_q.errors import ExportError
from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q.store import Store
from asvd_q_exporters.gptq import GptqExporter
from asvd_q_exporters.transformers import TransformersExporter, TransformersOptions
from tests.compression.job import compress_to
from tests.exporters.checkpoints import (
    TOKENS,
    assert_reads_back,
    assert_runs,
    export,
    reference_logits,
)
from tests.models.families import save_family

CODES = {
    "method": "gptq",
    "bits": 3,
    "group_size": 16,
    "factors": {"A": {"bits": 8}, "B": {"bits": 8}},
}
EXPORTER = TransformersExporter(TransformersOptions(dequantize=True))
KINDS: dict[str, tuple[str, str, str]] = {
    "llama": ("q_proj", "down_proj", "up_proj"),
    "opt": ("q_proj", "fc2", "fc1"),
    "gpt2": ("c_attn", "mlp.c_proj", "c_fc"),
}
"""By family: two layers that are corrected, and one that is factorised."""


def corrected_store(folder: Path, family: str, **quantize: Any) -> Store:
    first, second, third = KINDS[family]
    return compress_to(
        folder / "store",
        save_family(family, folder / "model"),
        quantize=CODES | quantize,
        correct={"ranks": {f"*.{first}": 4, f"*.{second}": 6}},
        decompose={"ranks": {f"*.{third}": 8}},
    )


@pytest.mark.parametrize("family", KINDS)
def test_corrections_are_written_read_and_run(tmp_path: Path, family: str) -> None:
    """Beside factors and plain codes, with biases, and where the source keeps (in, out)."""
    store = corrected_store(tmp_path, family)
    folder = export(EXPORTER, store, tmp_path / "out")
    assert_reads_back(EXPORTER, store, folder)
    assert_runs(EXPORTER, store, folder, within=1e-5)
    tensors = load_file(folder / "model.safetensors")
    ranks = store.plan.correction_ranks
    assert len(ranks) == 4
    for layer in store.plan:
        if layer.name not in ranks:
            continue
        assert tensors[f"{layer.name}.weight"].shape == layer.shape
        assert tensors[f"{layer.name}.BLinear.weight"].shape == (layer.rank, layer.shape[1])
        assert tensors[f"{layer.name}.ALinear.weight"].shape == (layer.shape[0], layer.rank)
        assert f"{layer.name}.ALinear.bias" not in tensors
        assert (f"{layer.name}.bias" in tensors) is (f"{layer.name}.bias" in store.source.tensors)
    config = json.loads((folder / "config.json").read_text())
    assert config["correction_ranks"] == ranks
    assert config["truncation_ranks"] == store.plan.ranks
    assert config["dtype"] == "float32"
    assert store.metadata("transformers").correction_ranks == ranks


def test_stock_transformers_loads_and_saves_them(tmp_path: Path) -> None:
    store = corrected_store(tmp_path, "llama")
    folder = export(EXPORTER, store, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(model(TOKENS).logits, reference_logits(store), rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "again", trust_remote_code=True
    )
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_stored_bytes_are_those_in_the_file(tmp_path: Path) -> None:
    store = corrected_store(tmp_path, "llama")
    tensors = load_file(export(EXPORTER, store, tmp_path / "out") / "model.safetensors")
    for layer in store.plan:
        found = sum(
            tensor.nbytes
            for name, tensor in tensors.items()
            if name.startswith(f"{layer.name}.") and not name.endswith(".bias")
        )
        assert EXPORTER.stored_bytes(layer) == found


def test_codes_are_refused_unless_they_are_to_become_floats(tmp_path: Path) -> None:
    store = corrected_store(tmp_path, "llama")
    exporter = TransformersExporter()
    refusals = {refusal.layer: str(refusal) for refusal in exporter.can_express(store.plan)}
    for name in store.plan.correction_ranks:
        assert "set dequantize: true" in refusals[name]
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="dequantize: true"):
        exporter.write(store, tmp_path / "out")
    assert EXPORTER.can_express(store.plan) == []


def test_dequantized_codes_are_not_rounded() -> None:
    with pytest.raises(ValidationError, match="dtype float16 would round"):
        TransformersOptions(dequantize=True, dtype="float16")
    assert EXPORTER.float_type == "float32"


def test_the_gptq_format_refuses_corrections_by_name() -> None:
    spec = QuantSpec(bits=4, group_size=32)
    layers = tuple(
        LayerPlan(
            name=f"model.layers.0.{kind}",
            kind=kind,
            block=0,
            shape=(64, 64),
            form="correction" if kind == "up_proj" else "dense",
            rank=32 if kind == "up_proj" else None,
            quantization={"weight": spec, "B": spec, "A": spec}
            if kind == "up_proj"
            else {"weight": spec},
        )
        for kind in ("q_proj", "up_proj")
    )
    (refusal,) = GptqExporter().can_express(Plan(float_type="float32", layers=layers))
    assert refusal.layer == "model.layers.0.up_proj"
    assert "peft" in refusal.instead
