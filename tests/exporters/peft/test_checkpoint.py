"""A base and its adapter: bytes, our own runner, and loaders that do not know this package."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asvd_q.errors import ArtefactError, ExportError
from asvd_q.evaluation.proof import prove
from asvd_q.evaluation.runners import model_runner
from asvd_q.metrics import relative_error
from asvd_q.models import SourceModel
from asvd_q.plan import QuantSpec
from asvd_q.quantization import FloatWeight
from asvd_q.store import Store, StoredLayer
from asvd_q_exporters.gptq import GptqExporter
from asvd_q_exporters.peft import PeftExporter, PeftOptions
from tests.exporters.apart import assert_opens_silently, run_apart
from tests.exporters.checkpoints import (
    TOKENS,
    assert_reads_back,
    assert_runs,
    export,
    family,
    reference_logits,
)
from tests.exporters.corrections import Choice, Corrected, corrected_store
from tests.support import tiny_llama

INT4 = QuantSpec(bits=4, group_size=32)
INT2 = QuantSpec(bits=2, group_size=16)
WITHIN = 5e-3
"""Relative logit error of gptqmodel's float32 path, whose products are rounded to float16."""


def some(spec: QuantSpec) -> Callable[[str], Choice]:
    """q, k and v corrected with one B, up and down in ranks of their own; o and gate are codes."""

    def choose(name: str) -> Choice:
        if name.endswith(("q_proj", "k_proj", "v_proj")):
            return Corrected(spec, 8, shares="attention")
        if name.endswith("up_proj"):
            return Corrected(spec, 13 if ".0." in name else 8)
        return Corrected(spec, 1) if name.endswith("down_proj") else spec

    return choose


def make(folder: Path, choose: Callable[[str], Choice], **options: Any) -> Store:
    source = SourceModel.open(str(tiny_llama(folder / "model", **options)))
    return corrected_store(folder / "store", source, choose)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    base = load_file(folder / "base" / "model.safetensors")
    return base | {name.removeprefix("base_model.model."): one for name, one in adapter.items()}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make(tmp_path_factory.mktemp("store"), some(INT2), attention_bias=True)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (INT4, {"attention_bias": True, "dtype": torch.bfloat16}),
        (QuantSpec(bits=3, group_size=64, symmetric=False), {"dtype": torch.float16}),
        (INT2, {"tied": True}),
    ],
)
def test_artefacts_are_written_read_and_run(
    tmp_path: Path, spec: QuantSpec, options: dict[str, Any]
) -> None:
    store = make(tmp_path, some(spec), **options)
    exporter = PeftExporter()
    assert exporter.can_express(store.plan) == []
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)
    tensors = tensors_of(folder)
    for record in store.records():
        found = sum(
            tensor.nbytes
            for name, tensor in tensors.items()
            if name.startswith(f"{record.name}.") and not name.endswith(".bias")
        )
        dtype = options.get("dtype", torch.float32)
        exact = PeftExporter(PeftOptions(dtype=str(dtype).removeprefix("torch.")))  # type: ignore[arg-type]
        assert exact.stored_bytes(record.as_plan()) == found
        assert (f"{record.name}.lora_A.weight" in tensors) is (record.form == "correction")


def test_the_names_of_peft_are_the_other_way_round(store: Store, tmp_path: Path) -> None:
    tensors = tensors_of(export(PeftExporter(), store, tmp_path / "out"))
    name = "model.layers.0.mlp.up_proj"
    weights = store.layer(name).weights
    assert torch.equal(tensors[f"{name}.lora_A.weight"], weights["B"].dequantize())
    assert torch.equal(tensors[f"{name}.lora_B.weight"], weights["A"].dequantize())
    assert tuple(tensors[f"{name}.lora_A.weight"].shape) == (13, 64)
    one, other = (tensors[f"model.layers.1.self_attn.{x}_proj.lora_A.weight"] for x in "qk")
    assert torch.equal(one, other)  # in common, and written out


def test_the_base_is_an_ordinary_checkpoint(store: Store, tmp_path: Path) -> None:
    folder = export(PeftExporter(), store, tmp_path / "out") / "base"
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert "auto_map" not in config
    assert "modules_in_block_to_quantize" not in config["quantization_config"]
    codes = {
        name: {"weight": weights["weight"]}
        for name in (record.name for record in store.records())
        if (weights := store.replaced(name))
    }
    expected = next(model_runner(store.source, codes.get, stream=False).score([TOKENS]))
    found = next(iter(GptqExporter().open(folder).score([TOKENS])))
    assert relative_error(expected, found) < WITHIN
    assert relative_error(reference_logits(store), found) > 0.1


def test_it_is_proven(store: Store, tmp_path: Path) -> None:
    exporter = PeftExporter()
    folder = export(exporter, store, tmp_path / "out")
    proof = prove(exporter, folder, store, model_runner(store.source, store.replaced), TOKENS)
    assert proof.status == "proven"
    assert proof.runtime is not None
    assert proof.runtime.startswith("peft ")


def test_layers_left_alone_stay_in_floating_point(tmp_path: Path) -> None:
    store = make(
        tmp_path, lambda name: Corrected(INT4, 8) if name.endswith(".0.mlp.up_proj") else None
    )
    exporter = PeftExporter(PeftOptions(dtype="float16"))
    folder = export(exporter, store, tmp_path / "out")
    config = json.loads((folder / "base" / "config.json").read_text())
    listed = config["quantization_config"]["modules_in_block_to_quantize"]
    assert listed == [["layers.0.mlp.up_proj"]]
    tensors = tensors_of(folder)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16, torch.int32}
    found = dict(exporter.read(folder))
    for layer in store.layers():
        for slot, weight in layer.weights.items():
            exact = weight.dequantize()
            expected = exact.half().float() if isinstance(weight, FloatWeight) else exact
            assert torch.equal(found[layer.record.name][slot], expected)


def test_two_exports_give_the_same_bytes(store: Store, tmp_path: Path) -> None:
    folders = [export(PeftExporter(), store, tmp_path / name) for name in ("first", "second")]
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*.*")) for folder in folders]
    assert names[0] == names[1]
    for name in names[0]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@pytest.mark.slow
def test_conv1d(tmp_path: Path) -> None:
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 64}
    source = family(tmp_path / "model", "GPT2LMHeadModel", **sizes)
    store = corrected_store(
        tmp_path / "store",
        source,
        # transformers initializes GPT-2's c_proj, which fails where that is codes.
        lambda name: None if "c_proj" in name else Corrected(INT4, 3 if "attn" in name else 64),
    )
    exporter = PeftExporter()
    folder = export(exporter, store, tmp_path / "out")
    assert_reads_back(exporter, store, folder)
    assert_runs(exporter, store, folder, WITHIN)


def test_what_cannot_be_expressed_is_not_written(tmp_path: Path) -> None:
    store = make(tmp_path, lambda name: Corrected(INT4, 8, b=INT4))
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="its B is 4-bit codes of rtn"):
        PeftExporter().write(store, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_values_beyond_the_type_are_named(store: Store, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj"

    def edit(layer: StoredLayer) -> StoredLayer:
        b = layer.weights.get("B")
        if layer.record.name != name or not isinstance(b, FloatWeight):
            return layer
        return StoredLayer(layer.record, {**layer.weights, "B": replace(b, weight=b.weight * 1e6)})

    copy = Store.create(tmp_path / "store", store.header, store.source)
    for block in store.blocks():
        layers = [edit(layer) for layer in store.layers() if layer.record.block == block]
        copy.write_block(block, layers)
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=f"{name}.*float16 cannot.*float32"):
        PeftExporter(PeftOptions(dtype="float16")).write(copy, tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lora_alpha", 16, "alpha 16"),
        ("rank_pattern", {}, "says rank 8"),
        ("alpha_pattern", {"up_proj": 26}, "alpha 26"),
        ("target_modules", ["q_proj"], "leave out"),
        ("r", None, "has no r"),
    ],
)
def test_a_configuration_that_would_scale_or_skip_is_found(
    store: Store, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    folder = export(PeftExporter(), store, tmp_path / "out")
    path = folder / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text()) | {key: value}
    path.write_text(json.dumps({name: one for name, one in config.items() if one is not None}))
    with pytest.raises(ArtefactError, match=message):
        list(PeftExporter().read(folder))


def test_damage_is_an_artefact_error(store: Store, tmp_path: Path) -> None:
    exporter = PeftExporter()
    with pytest.raises(ArtefactError, match=r"quantize_config\.json"):
        list(exporter.read(tmp_path))
    folder = export(exporter, store, tmp_path / "out")
    weights = folder / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-900])
    for attempt in (lambda: list(exporter.read(folder)), lambda: exporter.open(folder)):
        with pytest.raises(ArtefactError, match="adapter") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    (folder / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(ArtefactError, match=r"adapter_config\.json"):
        list(exporter.read(folder))


STOCK = """
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

for name, (folder, dtype) in jobs.items():
    if name == "auto":
        os.chdir(os.path.join(folder, "adapter"))
        model = AutoPeftModelForCausalLM.from_pretrained(".", dtype=dtype)
    else:
        base = AutoModelForCausalLM.from_pretrained(os.path.join(folder, "base"), dtype=dtype)
        model = PeftModel.from_pretrained(base, os.path.join(folder, "adapter"))
    with torch.inference_mode():
        logits = model(input_ids=tokens).logits
    adapted = {
        path: (module.r["default"], module.scaling["default"])
        for path, module in model.get_base_model().named_modules()
        if hasattr(module, "lora_A")
    }
    found[name] = (logits.float(), adapted)
"""


def of_many_blocks(name: str) -> Choice:
    """Ranks by block in two kinds of layer: more targets than PEFT keeps as a list of names."""
    block = int(name.split(".")[2])
    if name.endswith(("q_proj", "up_proj")):
        return Corrected(INT2, block % 3 + (1 if name.endswith("q_proj") else 4))
    return Corrected(INT2, 9) if name.endswith("1.mlp.down_proj") else INT2


@pytest.mark.slow
def test_loaders_without_this_package(tmp_path: Path) -> None:
    """Stock transformers with PEFT, optimum and gptqmodel; ours cannot be imported there."""
    cases: dict[str, tuple[Callable[[str], Choice], dict[str, Any], str, float]] = {
        # name: (choice, options of the model, dtype, bound)
        "ordinary": (some(INT4), {"attention_bias": True}, "float32", 2e-2),  # kernel in bf16
        "half": (some(INT4), {"dtype": torch.bfloat16}, "auto", 5e-2),
        "asymmetric": (some(QuantSpec(bits=3, symmetric=False)), {}, "float32", WITHIN),
        "many": (of_many_blocks, {"layers": 12}, "float32", WITHIN),
        "auto": (some(INT2), {"tied": True}, "float32", WITHIN),
    }
    jobs, expected, ranks = {}, {}, {}
    for name, (choose, options, dtype, _) in cases.items():
        store = make(tmp_path / name, choose, **options)
        folder = export(PeftExporter(), store, tmp_path / name / "out")
        (folder / "asvd_q.json").unlink()
        jobs[name] = (str(folder), dtype)
        expected[name] = reference_logits(store)
        ranks[name] = store.finished_plan.correction_ranks
    found = run_apart(STOCK, jobs, TOKENS, tmp_path)
    for name, (_, _, _, bound) in cases.items():
        logits, adapted = found[name]
        assert adapted == {layer: (rank, 1.0) for layer, rank in ranks[name].items()}
        assert relative_error(expected[name], logits) < bound, name
    assert len(found["many"][1]) == 26


@pytest.mark.slow
def test_opening_is_silent(store: Store, tmp_path: Path) -> None:
    folder = export(PeftExporter(), store, tmp_path / "out")
    assert_opens_silently("peft", folder)
