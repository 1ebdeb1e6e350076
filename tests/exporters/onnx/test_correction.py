"""Corrections: codes with A·B beside them, and a B that several layers have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from asvd_q.evaluation.proof import prove
from asvd_q.evaluation.runners import model_runner
from asvd_q.models import SourceModel
from asvd_q.plan import LayerPlan, Plan, QuantSpec, Slot
from asvd_q.quantization import FloatWeight
from asvd_q.store import Store, StoredLayer
from asvd_q_exporters.onnx import OnnxExporter, OnnxOptions
from asvd_q_exporters.onnx.sharing import same_factors
from tests.exporters.checkpoints import assert_reads_back, assert_runs, family
from tests.exporters.corrections import Choice, Corrected, corrected_store
from tests.exporters.onnx.conftest import Export, export
from tests.exporters.onnx.held import matrix_bytes
from tests.exporters.onnx.reference import reference_logits, relative, tokens
from tests.exporters.sizes import assert_sizes
from tests.quantization.nf4_reference import nf4
from tests.support import tiny_llama

W2 = QuantSpec(bits=2, group_size=16, symmetric=False)
W3 = QuantSpec(bits=3, group_size=32)
I8 = QuantSpec(bits=8, group_size=32)
I4 = QuantSpec(bits=4, group_size=-1, symmetric=False)

KINDS: dict[str, Choice] = {
    "0.q_proj": Corrected(W2, 16, I8, I4, "attention"),
    "0.k_proj": Corrected(W3, 16, I8, I8, "attention"),
    "0.v_proj": Corrected(nf4(64), 16, I8, None, "attention"),
    "0.o_proj": Corrected(nf4(32, double=True), 7),
    "0.gate_proj": Corrected(W2, 8, None, None, "mlp"),
    "0.up_proj": Corrected(W2, 8, None, I8, "mlp"),
    "0.down_proj": Corrected(W3, 5, nf4(64), nf4(32)),
    "1.q_proj": Corrected(W2, 8, I8, I8, "attention"),
    "1.k_proj": Corrected(W2, 8, I4, I8, "attention"),  # the same B, in other codes
    "1.v_proj": W2,
    "1.o_proj": None,
    "1.gate_proj": Corrected(W2, 8),
    "1.up_proj": Corrected(W2, 8),
    "1.down_proj": Corrected(W2, 1),
}

FIRST = {
    "model.layers.0.self_attn.k_proj": "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.v_proj": "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.up_proj": "model.layers.0.mlp.gate_proj",
}


def of(kinds: Mapping[str, Choice]) -> Callable[[str], Choice]:
    def choose(name: str) -> Choice:
        parts = name.split(".")
        return kinds[f"{parts[2]}.{parts[-1]}"]

    return choose


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("corrected")
    source = SourceModel.open(str(tiny_llama(folder / "model", attention_bias=True)))
    return corrected_store(folder / "store", source, of(KINDS))


@pytest.fixture(scope="module")
def made(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Computed in float32."""
    folder = tmp_path_factory.mktemp("corrected_onnx") / "onnx"
    return export(store, folder, OnnxOptions(accuracy_level=0))


def graph_of(folder: Path) -> onnx.GraphProto:
    return onnx.load(folder / "model.onnx").graph


def held_in(folder: Path) -> dict[str, int]:
    return matrix_bytes(onnx.load(folder / "model.onnx"))


def test_every_matrix_is_read_back(made: Export) -> None:
    assert_reads_back(made.exporter, made.store, made.folder)


def test_prefill_and_cached_steps_give_the_logits_of_the_store(made: Export) -> None:
    assert_runs(made.exporter, made.store, made.folder, 1e-5)
    ids = tokens(2, 9)
    found, _ = made.exporter.open(made.folder).forward(ids)
    assert relative(found, reference_logits(made.store, ids)) < 1e-5


def test_initializers_are_named_after_their_slots(made: Export) -> None:
    names = {one.name for one in graph_of(made.folder).initializer}
    layer = "model.layers.0.self_attn.q_proj"
    assert {one.removeprefix(f"{layer}.") for one in names if one.startswith(f"{layer}.")} == {
        *("weight.codes", "weight.scales", "weight.zero_points"),
        *("BLinear.codes", "BLinear.scales"),
        *("ALinear.codes", "ALinear.scales", "ALinear.zero_points"),
        "bias",
    }
    assert "model.layers.0.mlp.gate_proj.ALinear.weight" in names
    assert "model.layers.0.self_attn.o_proj.weight.absmax" in names


def test_a_common_factor_is_stored_and_computed_once(store: Store, made: Export) -> None:
    assert same_factors(store) == FIRST
    graph = graph_of(made.folder)
    names = {one.name for one in graph.initializer}
    for layer in FIRST:
        assert not any(name.startswith(f"{layer}.BLinear") for name in names)
    for holder, readers in (
        ("model.layers.0.self_attn.q_proj.BLinear.codes", "qkv"),
        ("model.layers.0.mlp.gate_proj.BLinear.weight", ("gate", "up")),
    ):
        (product,) = [node for node in graph.node if holder in node.input]
        after = [node for node in graph.node if product.output[0] in node.input]
        assert len(after) == len(readers)
        assert {node.input[1].split(".ALinear")[0].rsplit(".", 1)[1] for node in after} == {
            f"{one}_proj" for one in readers
        }
    corrected = {record.name for record in store.records() if record.form == "correction"}
    factors = {name for name in held_in(made.folder) if name.endswith(".BLinear")}
    holders = {name.removesuffix(".BLinear") for name in factors}
    assert holders == corrected - set(FIRST)


def test_the_metadata_tells_who_holds_it(made: Export) -> None:
    model = onnx.load(made.folder / "model.onnx")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    shared = json.loads(properties["asvd_q.shared"])
    assert shared["model.layers.0.mlp.up_proj.BLinear.weight"] == (
        "model.layers.0.mlp.gate_proj.BLinear.weight"
    )
    assert {name.partition(".BLinear")[0] for name in shared} == set(FIRST)
    assert set(shared.values()) <= {one.name for one in model.graph.initializer}


def test_stored_bytes_are_those_of_the_initializers_and_count_a_common_factor_in_each(
    made: Export,
) -> None:
    held = held_in(made.folder)
    for record in made.store.records():
        extra = held.get(f"{FIRST.get(record.name, '')}.BLinear", 0)
        assert (extra > 0) is (record.name in FIRST)
        own = (record.name, *(f"{record.name}.{part}" for part in ("weight", "BLinear", "ALinear")))
        found = sum(held.get(name, 0) for name in own) + extra
        assert made.exporter.stored_bytes(record.as_plan()) == found, record.name


def test_the_checker_accepts_it(made: Export) -> None:
    onnx.checker.check_model(str(made.folder / "model.onnx"))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_level_4_is_proven(store: Store, tmp_path: Path, dtype: Any) -> None:
    options = OnnxOptions(dtype=dtype, accuracy_level=4, external_data=True)
    made = export(store, tmp_path / "onnx", options)
    graph = onnx.load(made.folder / "model.onnx", load_external_data=False).graph
    assert sum("q_proj.BLinear.codes" in "".join(node.input) for node in graph.node) == 2
    reference = model_runner(store.source, store.replaced)
    proof = prove(made.exporter, made.folder, store, reference, tokens(1, 64))
    assert proof.status == "proven"
    assert proof.layers == len(store.records())


@pytest.mark.slow
def test_weights_are_read_one_at_a_time_and_give_the_same_bytes_again(
    made: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx_ir

    from asvd_q_exporters.onnx import save as save_module
    from asvd_q_exporters.onnx.tensors import TensorReader
    from asvd_q_exporters.onnx.write import build_model

    reads: list[str] = []
    original = TensorReader.read

    def counted(self: TensorReader, name: str, origin: Any) -> torch.Tensor:
        reads.append(name)
        return original(self, name, origin)

    monkeypatch.setattr(TensorReader, "read", counted)
    traced = build_model(made.store, OnnxOptions(accuracy_level=0))
    model = traced.model
    merged = {name: parts for one in traced.merged for name, (parts, _) in one.tensors.items()}
    assert reads == []
    lazy = {
        name
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, onnx_ir.LazyTensor)
    }
    save_module.save(model, tmp_path, False)
    assert sorted(reads) == sorted(part for name in lazy for part in merged.get(name, [name]))
    assert (tmp_path / "model.onnx").read_bytes() == (made.folder / "model.onnx").read_bytes()


def changed(store: Store, folder: Path, edit: Callable[[StoredLayer], StoredLayer]) -> Store:
    """A copy of the store with its layers edited."""
    copy = Store.create(folder, store.header, store.source)
    for block in store.blocks():
        layers = [edit(layer) for layer in store.layers() if layer.record.block == block]
        copy.write_block(block, layers)
    return copy


def test_one_bit_apart_is_not_the_same_factor(store: Store, tmp_path: Path) -> None:
    def edit(layer: StoredLayer) -> StoredLayer:
        b = layer.weights.get("B")
        if layer.record.name != "model.layers.0.mlp.up_proj" or not isinstance(b, FloatWeight):
            return layer
        moved = b.weight.clone()
        moved[-1, -1] = torch.nextafter(moved[-1, -1], torch.tensor(torch.inf))
        return StoredLayer(layer.record, {**layer.weights, "B": replace(b, weight=moved)})

    found = same_factors(changed(store, tmp_path, edit))
    assert found == {name: first for name, first in FIRST.items() if "up_proj" not in name}


def test_layers_of_other_inputs_share_the_bytes_and_nothing_more(tmp_path: Path) -> None:
    """q and o read different inputs: one initializer, two products."""
    source = SourceModel.open(str(tiny_llama(tmp_path / "model", layers=1)))
    store = corrected_store(
        tmp_path / "store",
        source,
        lambda name: (
            Corrected(W3, 4, I8, None, "x") if "_attn.q" in name or "_attn.o" in name else None
        ),
    )
    made = export(store, tmp_path / "onnx", OnnxOptions(accuracy_level=0))
    graph = graph_of(made.folder)
    held = "model.layers.0.self_attn.q_proj.BLinear.codes"
    assert [one.name for one in graph.initializer if "BLinear.codes" in one.name] == [held]
    products = [node for node in graph.node if held in node.input]
    assert len({node.input[0] for node in products}) == len(products) == 2
    assert_reads_back(made.exporter, store, made.folder)
    assert_runs(made.exporter, store, made.folder, 1e-5)


@pytest.mark.slow
def test_conv1d_and_a_tied_head(tmp_path: Path) -> None:
    """A square factor of one input beside a head that is the embedding: neither is mistaken."""
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 64, "vocab_size": 64}
    source = family(tmp_path / "model", "GPT2LMHeadModel", **sizes)
    store = corrected_store(
        tmp_path / "store",
        source,
        lambda name: Corrected(W3, 64 if name.endswith("c_attn") else 3, None, I8),
    )
    made = export(store, tmp_path / "onnx", OnnxOptions(accuracy_level=0))
    assert_reads_back(made.exporter, store, made.folder)
    found, _ = made.exporter.open(made.folder).forward(tokens(2, 9, 64))
    assert relative(found, reference_logits(store, tokens(2, 9, 64))) < 1e-5


@pytest.mark.parametrize("slot", ["weight", "B", "A"])
def test_what_an_operator_cannot_hold_is_refused_in_any_slot(slot: Slot) -> None:
    specs: dict[Slot, QuantSpec | None] = {"weight": I8, "B": None, "A": None}
    specs[slot] = QuantSpec(group_size=48)
    layer = LayerPlan(
        name="layers.0.q",
        kind="q",
        block=0,
        shape=(192, 192),
        form="correction",
        rank=96,
        quantization=specs,
    )
    (refusal,) = OnnxExporter().can_express(Plan(float_type="float32", layers=(layer,)))
    assert refusal.layer == "layers.0.q"
    assert "48" in refusal.reason


def test_a_shared_b_is_predicted_once(made: Export) -> None:
    """Where the plan says so, and rank and settings are the same."""
    block = "model.layers.{}.self_attn.{}_proj"
    groups = [tuple(block.format(index, one) for one in "qkv") for index in (0, 1)]
    groups.append(tuple(f"model.layers.0.mlp.{one}_proj" for one in ("gate", "up")))
    plan = made.store.plan.model_copy(update={"one_factor": tuple(groups)})
    assert plan.same_factors() == FIRST
    assert_sizes(made.exporter, made.store, made.folder, plan)
