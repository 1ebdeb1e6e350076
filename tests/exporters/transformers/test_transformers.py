"""Checkpoints of floating-point factors: bytes, loading, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from asvd_q.errors import ArtefactError, ExportError
from asvd_q.models import SourceModel
from asvd_q.plan import LayerPlan, Plan, QuantSpec, Slot
from asvd_q.store import StoredLayer
from asvd_q_exporters._checkpoint import CheckpointFormat, write_checkpoint
from asvd_q_exporters._safetensors import Group, TensorSpec, write_safetensors
from asvd_q_exporters.onnx import OnnxExporter
from asvd_q_exporters.transformers import TransformersExporter, TransformersOptions
from tests.exporters.checkpoints import (
    TOKENS,
    assert_reads_back,
    assert_runs,
    export,
    family,
    reference_logits,
    store_of,
)
from tests.models.test_modeling import FAMILIES
from tests.support import WREN, hand_made_store, tiny_llama

INT4 = QuantSpec(bits=4, group_size=32)
NF4 = QuantSpec(method="nf4")


def half(name: str, shape: tuple[int, int]) -> tuple[int | None, QuantSpec | None]:
    """Factors for all but one layer of each block."""
    return (None if name.endswith("down_proj") else min(shape) // 2, None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_are_written_read_and_run(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    path = tiny_llama(tmp_path / "model", tied=tied, attention_bias=True, dtype=dtype)
    source = SourceModel.open(str(path))
    store = hand_made_store(tmp_path / "store", source, half)
    exporter = TransformersExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, within=1e-5)
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert ("lm_head.weight" in tensors) is not tied
    assert "model.layers.0.self_attn.q_proj.ALinear.bias" in tensors
    assert "model.layers.0.self_attn.q_proj.bias" not in tensors
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "asvd_q_llama"
    assert config["truncation_ranks"] == store.plan.ranks
    assert config["dtype"] == str(dtype).removeprefix("torch.")


def test_stock_transformers_loads_and_saves_it(tmp_path: Path) -> None:
    source = SourceModel.open(str(tiny_llama(tmp_path / "model", tied=True)))
    store = hand_made_store(tmp_path / "store", source, half)
    folder = export(TransformersExporter(), store, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(model(TOKENS).logits, reference_logits(store), rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "again", trust_remote_code=True
    )
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_two_exports_give_the_same_bytes(tmp_path: Path) -> None:
    store = hand_made_store(
        tmp_path / "store", SourceModel.open(str(tiny_llama(tmp_path / "model"))), half
    )
    first = export(TransformersExporter(), store, tmp_path / "first")
    second = export(TransformersExporter(), store, tmp_path / "second")
    assert contents(first) == contents(second)


def test_nothing_factorised_gives_the_source_back(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model")
    store = hand_made_store(
        tmp_path / "store", SourceModel.open(str(path)), lambda name, shape: (None, None)
    )
    exporter = TransformersExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert "auto_map" not in config
    assert not list(folder.glob("*.py"))
    expected = load_file(path / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_another_float_type(tmp_path: Path) -> None:
    store = hand_made_store(
        tmp_path / "store", SourceModel.open(str(tiny_llama(tmp_path / "model"))), half
    )
    exporter = TransformersExporter(TransformersOptions(dtype="float16"))
    folder = export(exporter, store, tmp_path / "out")
    assert exporter.float_type == "float16"
    assert exporter.bounds.relative_error > TransformersExporter().bounds.relative_error
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    for name, matrices in exporter.read(folder):
        for slot, weight in store.layer(name).weights.items():
            assert torch.equal(matrices[slot], weight.dequantize(torch.float16).float())


def test_stored_bytes_are_those_in_the_file(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "model", attention_bias=True, dtype=torch.bfloat16)
    store = hand_made_store(tmp_path / "store", SourceModel.open(str(path)), half)
    exporter = TransformersExporter()
    tensors = load_file(export(exporter, store, tmp_path / "out") / "model.safetensors")
    for layer in store.plan:
        counted = layer.model_copy(update={"predicted_bytes": layer.parameters * 2})
        found = sum(
            tensor.nbytes
            for name, tensor in tensors.items()
            if name.startswith(f"{layer.name}.") and not name.endswith(".bias")
        )
        assert exporter.stored_bytes(counted) == exporter.stored_bytes(layer) == found
        wide = TransformersExporter(TransformersOptions(dtype="float32"))
        assert wide.stored_bytes(layer) == 2 * found


def test_large_checkpoints_are_sharded_with_an_index(tmp_path: Path) -> None:
    store = hand_made_store(
        tmp_path / "store", SourceModel.open(str(tiny_llama(tmp_path / "model"))), half
    )
    whole = export(TransformersExporter(), store, tmp_path / "whole")
    folder = tmp_path / "sharded"
    folder.mkdir()
    write_checkpoint(
        store, folder, CheckpointFormat(as_source=True), float_type="float32", shard_bytes=60_000
    )
    shutil.copy(whole / "asvd_q.json", folder)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    merged = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert index["weight_map"].keys() == merged.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in merged.values())
    assert_reads_back(TransformersExporter(), store, folder)
    assert_runs(TransformersExporter(), store, folder, within=1e-5)


def test_the_writer_gives_the_bytes_of_safetensors(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(3, dtype=torch.float16),
        "a.ü": torch.randn(2, 3),
        "c": torch.tensor(4, dtype=torch.int64),
        "d": torch.randn(5).to(torch.bfloat16),
        "e": torch.zeros(0, 4),
    }
    groups = [
        Group((TensorSpec(name, tensor.dtype, tuple(tensor.shape)),), lambda n=name: tensors)  # type: ignore[misc]
        for name, tensor in tensors.items()
    ]
    write_safetensors(tmp_path / "ours", groups)
    assert load_file(tmp_path / "ours").keys() == tensors.keys()
    for name, tensor in load_file(tmp_path / "ours").items():
        assert torch.equal(tensor, tensors[name])
    plain = {name: tensor for name, tensor in tensors.items() if name != "a.ü"}
    groups = [group for group in groups if group.specs[0].name != "a.ü"]
    write_safetensors(tmp_path / "ours", groups)
    save_file(plain, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").stat().st_size == (tmp_path / "theirs").stat().st_size


def test_the_writer_holds_one_group_at_a_time(tmp_path: Path) -> None:
    written: list[weakref.ref[torch.Tensor]] = []

    def load(name: str) -> dict[str, torch.Tensor]:
        assert all(reference() is None for reference in written)
        tensor = torch.ones(8)
        written.append(weakref.ref(tensor))
        return {name: tensor}

    names = ("c", "a", "b")
    write_safetensors(
        tmp_path / "file",
        [Group((TensorSpec(name, torch.float32, (8,)),), partial(load, name)) for name in names],
    )
    assert len(written) == 3
    assert load_file(tmp_path / "file").keys() == set(names)


def test_a_layer_that_stayed_dense_against_the_plan(tmp_path: Path) -> None:
    """The record says what was done; `truncation_ranks` and the tensors follow it."""
    store = hand_made_store(
        tmp_path / "store", SourceModel.open(str(tiny_llama(tmp_path / "model"))), half
    )
    name = "model.layers.0.self_attn.q_proj"
    layers = [layer for layer in store.layers() if layer.record.block == 0]
    dense = layers[0].record.model_copy(
        update={"form": "dense", "rank": None, "quantization": {"weight": None}, "reason": "why"}
    )
    assert dense.name == name
    store.write_block(0, [StoredLayer(dense, {}), *layers[1:]])
    exporter = TransformersExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert name in store.plan.ranks
    assert name not in json.loads((folder / "config.json").read_text())["truncation_ranks"]
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, within=1e-5)


def test_the_writer_refuses_what_was_not_promised(tmp_path: Path) -> None:
    group = Group((TensorSpec("a", torch.float32, (2,)),), lambda: {"a": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"a is torch\.float32"):
        write_safetensors(tmp_path / "file", [group])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_every_family(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    source = family(tmp_path / "model", name, **options)
    count = iter(range(100))
    store = store_of(
        tmp_path / "store",
        source,
        lambda layer: (4 if next(count) % 2 and layer != "lm_head" else None, {}),
    )
    exporter = TransformersExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert_runs(exporter, store, folder, within=1e-5)


def test_a_source_without_the_base_prefix(tmp_path: Path) -> None:
    """As the original GPT-2 has it: `h.0.attn…` in the file, `transformer.h.0.attn…` in code."""
    source = family(tmp_path / "model", "GPT2LMHeadModel", **dict(FAMILIES)["GPT2LMHeadModel"])
    weights = load_file(source.path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    save_file(bare, source.path / "model.safetensors", metadata={"format": "pt"})
    source = SourceModel.open(str(source.path))
    store = store_of(
        tmp_path / "store", source, lambda layer: (4 if layer.endswith("c_fc") else None, {})
    )
    exporter = TransformersExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert "h.1.mlp.c_fc.BLinear.weight" in load_file(folder / "model.safetensors")
    assert_runs(exporter, store, folder, within=1e-5)
    assert len(dict(exporter.read(folder))) == len(store.records())


def test_a_factorised_head_is_untied(tmp_path: Path) -> None:
    source = SourceModel.open(str(tiny_llama(tmp_path / "model", tied=True)))
    store = store_of(
        tmp_path / "store", source, lambda layer: (16 if layer == "lm_head" else None, {})
    )
    exporter = TransformersExporter()
    folder = export(exporter, store, tmp_path / "out")
    names = load_file(folder / "model.safetensors").keys()
    assert {"lm_head.ALinear.weight", "lm_head.BLinear.weight"} < names
    assert "model.embed_tokens.weight" in names
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, within=1e-5)


def test_codes_are_refused(tmp_path: Path) -> None:
    source = SourceModel.open(str(tiny_llama(tmp_path / "model")))
    store = hand_made_store(
        tmp_path / "store",
        source,
        lambda name, shape: (None, INT4 if name.endswith("up_proj") else None),
    )
    exporter = TransformersExporter()
    refusals = exporter.can_express(store.plan)
    assert [refusal.layer for refusal in refusals] == [
        "model.layers.0.mlp.up_proj",
        "model.layers.1.mlp.up_proj",
    ]
    assert "4-bit" in str(refusals[0])
    assert "gptq or onnx" in refusals[0].instead
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=r"layers\.0\.mlp\.up_proj"):
        exporter.write(store, tmp_path / "out")


def test_nf4_is_sent_to_the_format_that_holds_it() -> None:
    layer = LayerPlan(name="q", kind="q", block=0, shape=(64, 64), quantization={"weight": NF4})
    plan = Plan(float_type="float32", layers=(layer,))
    (refusal,) = TransformersExporter().can_express(plan)
    assert "nf4" in refusal.reason
    assert refusal.instead.startswith("export it with bitsandbytes or onnx, or set dequantize")
    assert OnnxExporter().can_express(plan) == []


def test_mixed_layers_count_their_float_part() -> None:
    slots: dict[Slot, QuantSpec | None] = {"A": None, "B": INT4}
    layer = LayerPlan(
        name="x", kind="x", block=0, shape=(64, 64), form="factors", rank=32, quantization=slots
    )
    assert TransformersExporter().can_express(Plan(float_type="float16", layers=(layer,)))


def test_the_tokenizer_travels_along(tmp_path: Path) -> None:
    source = SourceModel.open(str(WREN))
    store = hand_made_store(
        tmp_path / "store",
        source,
        lambda name, shape: (64 if name.endswith("layers.0.mlp.up_proj") else None, None),
    )
    folder = export(TransformersExporter(), store, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    text = "Small birds sing."
    assert tokenizer(text)["input_ids"] == source.tokenizer(text)["input_ids"]
    assert (folder / "generation_config.json").is_file()


def test_damaged_folders_are_artefact_errors(tmp_path: Path) -> None:
    exporter = TransformersExporter()
    with pytest.raises(ArtefactError, match=r"config\.json"):
        exporter.open(tmp_path)
    with pytest.raises(ArtefactError, match="no safetensors"):
        list(exporter.read(tmp_path))
    source = SourceModel.open(str(tiny_llama(tmp_path / "model")))
    store = hand_made_store(tmp_path / "store", source, half)
    folder = export(exporter, store, tmp_path / "out")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])
    with pytest.raises(ArtefactError):
        exporter.open(folder)
    with pytest.raises(ArtefactError, match="damaged at"):
        list(exporter.read(folder))


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys, asvd_q_exporters.gptq as g, asvd_q_exporters.transformers as t;"
        "g.GptqExporter(), t.TransformersExporter();"
        "print([n for n in ('torch', 'transformers', 'gptqmodel') if n in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
