"""GPTQ-format checkpoints: bytes, our own runner, and loaders that do not know this package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asvd_q.errors import ArtefactError, ExportError
from asvd_q.models import SourceModel
from asvd_q.plan import QuantSpec, Slot
from asvd_q.store import Store
from asvd_q_exporters._runner import loading
from asvd_q_exporters.gptq import GptqExporter, GptqOptions
from tests.exporters.apart import assert_opens_silently
from tests.exporters.checkpoints import (
    assert_reads_back,
    assert_runs,
    config_of,
    export,
    family,
    some,
    store_of,
)
from tests.models.test_modeling import FAMILIES
from tests.support import WREN, Choice, hand_made_store, tiny_llama

INT4 = QuantSpec(bits=4, group_size=32)
MPT: tuple[str, dict[str, Any]] = (
    "MptForCausalLM",
    {"vocab_size": 64, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
)
"""Its blocks have a name that optimum does not look for."""

WITHIN = 5e-3
"""Relative logit error of gptqmodel's float32 path, whose products are rounded to float16."""


def make(folder: Path, choose: Any, **options: Any) -> Store:
    source = SourceModel.open(str(tiny_llama(folder / "model", **options)))
    return hand_made_store(folder / "store", source, choose)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (INT4, {"attention_bias": True, "dtype": torch.bfloat16}),
        (QuantSpec(bits=4, group_size=128), {"tied": True}),
        (QuantSpec(bits=4, group_size=-1, symmetric=False), {"attention_bias": True}),
        (QuantSpec(bits=3, group_size=64, symmetric=False), {"dtype": torch.float16}),
        (QuantSpec(bits=2, group_size=16), {}),
        (QuantSpec(bits=8, group_size=256, symmetric=False), {"tied": True}),
    ],
)
def test_checkpoints_are_written_read_and_run(
    tmp_path: Path, spec: QuantSpec, options: dict[str, Any]
) -> None:
    store = make(tmp_path, some(spec), **options)
    exporter = GptqExporter()
    assert exporter.can_express(store.plan) == []
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)
    tensors = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in tensors) is not options.get("tied", False)
    for layer in store.plan:
        found = sum(
            tensor.nbytes
            for name, tensor in tensors.items()
            if name.startswith(f"{layer.name}.") and not name.endswith(".bias")
        )
        assert exporter.stored_bytes(layer) == found
    config = config_of(folder)
    quantization = config["quantization_config"]
    assert quantization == json.loads((folder / "quantize_config.json").read_text())
    assert quantization["checkpoint_format"] == ("gptq" if spec.symmetric else "gptq_v2")
    assert quantization["sym"] is spec.symmetric
    assert "modules_in_block_to_quantize" not in quantization
    assert config["truncation_ranks"] == store.plan.ranks


def test_two_exports_give_the_same_bytes(tmp_path: Path) -> None:
    store = make(tmp_path, some(INT4))
    first = export(GptqExporter(), store, tmp_path / "first")
    second = export(GptqExporter(), store, tmp_path / "second")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
    assert len(list(first.iterdir())) == len(list(second.iterdir()))


def test_quantization_alone_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    store = make(tmp_path, some(INT4, rank=None))
    folder = export(GptqExporter(), store, tmp_path / "out")
    config = config_of(folder)
    assert config["model_type"] == "llama"
    assert "auto_map" not in config
    assert "truncation_ranks" not in config
    assert not list(folder.glob("*.py"))
    assert "model.layers.0.mlp.up_proj.qweight" in load_file(folder / "model.safetensors")


def test_layers_that_stay_float_are_left_out_of_the_list(tmp_path: Path) -> None:
    store = make(
        tmp_path,
        lambda name, shape: (
            32 if name.endswith("q_proj") else None,
            INT4 if name.endswith(("q_proj", "up_proj")) else None,
        ),
    )
    exporter = GptqExporter()
    folder = export(exporter, store, tmp_path / "out")
    listed = config_of(folder)["quantization_config"]["modules_in_block_to_quantize"]
    assert listed == [["self_attn.q_proj.BLinear", "self_attn.q_proj.ALinear", "mlp.up_proj"]]
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)


def test_blocks_that_differ_are_listed_by_their_names(tmp_path: Path) -> None:
    source = SourceModel.open(str(tiny_llama(tmp_path / "model", layers=3)))
    slots: dict[Slot, QuantSpec] = {"A": INT4}

    def choose(name: str) -> tuple[int | None, dict[Slot, QuantSpec]]:
        if name.endswith("1.mlp.up_proj"):
            return 32, slots
        return (None, {"weight": INT4}) if ".0." in name else (None, {})

    store = store_of(tmp_path / "store", source, choose)
    exporter = GptqExporter()
    folder = export(exporter, store, tmp_path / "out")
    (listed,) = config_of(folder)["quantization_config"]["modules_in_block_to_quantize"]
    assert "layers.0.self_attn.q_proj" in listed
    assert listed[-1] == "layers.1.mlp.up_proj.ALinear"
    assert len(listed) == 8
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)


@pytest.mark.parametrize(
    ("spec", "pinned"),
    [
        (INT4, False),
        (QuantSpec(bits=4, group_size=16), True),
        (QuantSpec(bits=4, group_size=64), True),  # 96 input channels of down are no multiple
        (QuantSpec(bits=4, group_size=-1), True),
        (QuantSpec(bits=4, group_size=256), False),
        (QuantSpec(bits=8, group_size=64), False),
    ],
)
def test_the_kernel_is_pinned_where_the_default_one_fails(
    tmp_path: Path, spec: QuantSpec, pinned: bool
) -> None:
    folder = export(GptqExporter(), make(tmp_path, some(spec)), tmp_path / "out")
    assert ("backend" in config_of(folder)["quantization_config"]) is pinned


@pytest.mark.parametrize(
    ("name", "options"), [FAMILIES[-1], FAMILIES[-2], FAMILIES[2], FAMILIES[4], FAMILIES[5], MPT]
)
def test_other_families(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """Conv1D weights, biases, fused projections, other names for the blocks."""
    wide: dict[str, int] = {
        key: 64 for key in ("hidden_size", "n_embd", "word_embed_proj_dim") if key in options
    }
    if "head_dim" in options:
        wide |= {"num_key_value_heads": 4, "head_dim": 16}
    source = family(tmp_path / "model", name, **(options | wide))
    count = iter(range(100))
    slots: dict[Slot, QuantSpec] = {"weight": INT4, "A": INT4, "B": INT4}

    def choose(layer: str) -> tuple[int | None, dict[Slot, QuantSpec]]:
        if layer == "lm_head":
            return None, {}
        return (32 if next(count) % 3 == 0 else None), slots

    store = store_of(tmp_path / "store", source, choose)
    exporter = GptqExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)
    assert ("block_name_to_quantize" in config_of(folder)["quantization_config"]) is (
        name == MPT[0]
    )


MIXED = {
    "up_proj": None,
    "v_proj": QuantSpec(bits=8, group_size=16),
    "0.self_attn.o_proj": QuantSpec(bits=2, group_size=32),
    "q_proj": QuantSpec(bits=3, group_size=-1),
}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rank", [None, 32])
def test_layers_that_differ_run_in_gptqmodel(
    tmp_path: Path, symmetric: bool, rank: int | None
) -> None:
    """Dense, factors with codes, and factors in floating point, in either version."""

    def choose(name: str, shape: tuple[int, int]) -> Choice:
        spec = next((MIXED[end] for end in MIXED if name.endswith(end)), INT4)
        if spec is not None and spec.bits in (3, 4):
            spec = spec.model_copy(update={"symmetric": symmetric})
        return (rank if name.endswith(("v_proj", "up_proj", "q_proj")) else None), spec

    store = make(tmp_path, choose, attention_bias=True)
    for file in WREN.glob("tokenizer*.json"):  # without which it loads nothing
        shutil.copy(file, tmp_path / "model")
    exporter = GptqExporter(GptqOptions(loader="gptqmodel", dtype="float32"))
    assert len(GptqExporter().can_express(store.finished_plan)) == 1
    assert exporter.can_express(store.finished_plan) == []
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)
    tensors = load_file(folder / "model.safetensors")
    for layer in store.plan:
        stored = (
            tensor.nbytes
            for name, tensor in tensors.items()
            if name.startswith(f"{layer.name}.") and not name.endswith(".bias")
        )
        assert exporter.stored_bytes(layer) == sum(stored)
    foreseen = exporter.artefact_bytes(store.finished_plan, store.source)
    for file, size in {**foreseen.weights, **foreseen.others}.items():
        assert (folder / file).stat().st_size == size, file
    config = config_of(folder)["quantization_config"]
    assert config == json.loads((folder / "quantize_config.json").read_text())
    assert (config["bits"], config["group_size"]) == (4, 32)
    assert config["sym"] is symmetric
    assert config["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2")
    floats_of_one = 1 if rank is None else 2
    assert sum(rule.startswith("-:") for rule in config["dynamic"]) == 2 * floats_of_one


def test_rules_that_leave_out_a_layer_with_codes_are_an_error(tmp_path: Path) -> None:
    exporter = GptqExporter()
    folder = export(exporter, make(tmp_path, some(INT4, rank=None)), tmp_path / "out")
    path = folder / "quantize_config.json"
    config = json.loads(path.read_text())
    config["dynamic"] = {"-:.*down_proj": {}}
    path.write_text(json.dumps(config))
    with pytest.raises(ArtefactError, match=r"leaves out model\.layers\.0\.mlp\.down_proj"):
        list(exporter.read(folder))


def test_a_model_that_initialises_layers_by_their_weights(tmp_path: Path) -> None:
    """GPT-2 does `c_proj`, after its tensors were loaded: a class of ours leaves it alone."""
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64}
    source = family(tmp_path / "model", "GPT2LMHeadModel", **sizes)
    exporter = GptqExporter()
    for kind, model_type in (("c_fc", "gpt2"), ("c_proj", "asvd_q_gpt2")):
        store = store_of(
            tmp_path / kind / "store",
            source,
            lambda name, kind=kind: (None, {"weight": INT4} if name.endswith(kind) else {}),
        )
        folder = export(exporter, store, tmp_path / kind / "out")
        assert config_of(folder)["model_type"] == model_type
        assert (folder / "modeling_asvd_q.py").exists() is (model_type != "gpt2")
        foreseen = exporter.artefact_bytes(store.finished_plan, source)
        assert ("modeling_asvd_q.py" in foreseen.others) is (model_type != "gpt2")
        assert_reads_back(exporter, store, folder)
        assert_runs(exporter, store, folder, WITHIN)


@pytest.mark.parametrize("error", [AttributeError, TypeError, AssertionError, KeyError])
def test_whatever_a_loader_stumbles_over_is_an_artefact_error(error: type[Exception]) -> None:
    with pytest.raises(ArtefactError, match="folder cannot be loaded"), loading(Path("folder")):
        raise error("c_proj")


def test_act_order_is_declared(tmp_path: Path) -> None:
    from dataclasses import replace

    from asvd_q.quantization import QuantizedWeight
    from asvd_q.store import StoredLayer

    store = make(tmp_path, some(INT4))
    layer = store.layer("model.layers.0.mlp.down_proj")
    weight = layer.weights["weight"]
    assert isinstance(weight, QuantizedWeight)
    order = torch.randperm(weight.shape[1]).int()
    spec = QuantSpec(method="gptq", bits=4, group_size=32, act_order=True)
    record = layer.record.model_copy(update={"quantization": {"weight": spec}})
    changed = StoredLayer(record, {"weight": replace(weight, spec=spec, permutation=order)})
    others = [found for found in store.layers() if found.record.block == 0]
    store.write_block(
        0, [changed if other.record.name == layer.record.name else other for other in others]
    )
    exporter = GptqExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert config_of(folder)["quantization_config"]["desc_act"] is True
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)


def test_what_cannot_be_expressed_is_not_written(tmp_path: Path) -> None:
    store = make(tmp_path, some(INT4, rank=24))
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="rank_multiple 32"):
        GptqExporter().write(store, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_artefact_is_an_artefact_error(tmp_path: Path) -> None:
    exporter = GptqExporter()
    with pytest.raises(ArtefactError, match=r"quantize_config\.json"):
        list(exporter.read(tmp_path))
    folder = export(exporter, make(tmp_path, some(INT4)), tmp_path / "out")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9000])
    with pytest.raises(ArtefactError):
        list(exporter.read(folder))
    with pytest.raises(ArtefactError):
        exporter.open(folder)


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["transformers", "gptqmodel"])
def test_opening_is_silent(tmp_path: Path, loader: str) -> None:
    store = make(tmp_path, some(INT4))
    for file in WREN.glob("tokenizer*.json"):
        shutil.copy(file, tmp_path / "model")
    folder = export(GptqExporter(), store, tmp_path / "out")
    assert_opens_silently("gptq", folder, f"loader={loader}")
