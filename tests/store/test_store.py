"""The store: what goes in comes out, and what is damaged or foreign is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asvd_q.errors import StoreError
from asvd_q.models import SourceModel
from asvd_q.models.skeleton import build_skeleton
from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q.quantization import FloatWeight, StoredWeight, quantize
from asvd_q.records import ArtefactMetadata, LayerRecord
from asvd_q.store import Store, StoredLayer, StoreHeader, store_metadata
from tests.compression.job import hashes
from tests.models.families import save_family
from tests.store.given import CHOICES, choose
from tests.support import hand_made_store, tiny_llama


def expected_weights(store: Store) -> dict[str, StoredWeight]:
    """What `hand_made_store` put in, made again from the source."""
    found: dict[str, StoredWeight] = {}
    for plan in store.plan:
        weight = store.source.tensor(f"{plan.name}.weight").double()
        matrices = {"weight": weight}
        if plan.rank is not None:
            u, s, vt = torch.linalg.svd(weight, full_matrices=False)
            root = s[: plan.rank].sqrt()
            matrices = {"B": root[:, None] * vt[: plan.rank], "A": u[:, : plan.rank] * root}
        for slot, spec in plan.quantization.items():
            matrix = matrices[slot]
            found[f"{plan.name}.{slot}"] = (
                FloatWeight(matrix.float()) if spec is None else quantize(matrix, spec)
            )
    return found


def test_everything_comes_back_bit_for_bit(store: Store) -> None:
    again = Store.open(store.folder, store.source)
    expected = expected_weights(store)
    read = {
        f"{layer.record.name}.{slot}": weight
        for layer in again.layers()
        for slot, weight in layer.weights.items()
    }
    assert list(read) == list(expected)
    for name, weight in expected.items():
        ours, theirs = read[name].tensors(), weight.tensors()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[part], theirs[part]) for part in theirs)
        assert all(ours[part].dtype == theirs[part].dtype for part in theirs)


def test_replaced_gives_the_dequantized_matrices_and_none_for_the_rest(store: Store) -> None:
    expected = expected_weights(store)
    for plan in store.plan:
        replaced = store.replaced(plan.name)
        if plan.kind not in CHOICES:
            assert replaced is None
            continue
        assert replaced is not None
        assert set(replaced) == set(plan.quantization)
        for slot, matrix in replaced.items():
            assert matrix.dtype == torch.float32
            assert torch.equal(matrix, expected[f"{plan.name}.{slot}"].dequantize())
    assert store.replaced("model.norm") is None


def test_a_layer_left_alone_returns_the_source_weight_and_takes_no_bytes(store: Store) -> None:
    name = "model.layers.1.mlp.down_proj"
    layer = store.layer(name)
    assert torch.equal(layer.weights["weight"].dequantize(), store.source.tensor(f"{name}.weight"))
    tensors = load_file(store.folder / "blocks" / "00001.safetensors")
    assert not any(key.startswith(name) for key in tensors)
    assert "model.layers.1.mlp.gate_proj.A.codes" in tensors


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_square_layer_left_alone_is_out_by_in_whatever_it_is_kept_as(
    family: str, tmp_path: Path
) -> None:
    """GPT-2 keeps (in, out); the shape of a square weight does not tell."""
    source = SourceModel.open(str(save_family(family, tmp_path / "model")))
    refs = [ref for ref in build_skeleton(source).weights if ref.block is not None]
    layers = tuple(
        LayerPlan(
            name=ref.name,
            kind=ref.kind,
            block=ref.block,
            shape=ref.shape,
            quantization={"weight": None},
        )
        for ref in refs
    )
    header = StoreHeader(
        key="k",
        asvd_q="0",
        source=source.identity,
        plan=Plan(float_type="float32", layers=layers),
    )
    store = Store.create(tmp_path / "store", header, source)
    for block in store.blocks():
        store.write_block(
            block, [StoredLayer(untouched(plan), {}) for plan in layers if plan.block == block]
        )
    assert any(ref.shape[0] == ref.shape[1] for ref in refs)
    for ref in refs:
        expected = ref.take(source.tensor(ref.tensor_name))
        assert torch.equal(store.layer(ref.name).weights["weight"].dequantize(), expected)


def untouched(plan: LayerPlan) -> LayerRecord:
    return LayerRecord(
        name=plan.name,
        kind=plan.kind,
        block=plan.block,
        shape=plan.shape,
        form="dense",
        rank=None,
        reason=None,
        quantization={"weight": None},
        bytes_before=0,
        bytes_after=0,
        errors={},
    )


def test_bytes_of_the_records_are_those_of_the_weights(store: Store) -> None:
    for layer in store.layers():
        assert layer.record.bytes_after == sum(part.nbytes for part in layer.weights.values())


@pytest.mark.parametrize(("kind", "method"), [("k_proj", "nf4"), ("o_proj", "gptq")])
def test_tensors_of_another_kind_of_weight_are_told_by_layer(
    kind: str, method: str, store: Store
) -> None:
    """A record that names another method than the one that made the tensors is damage."""
    layer = f"model.layers.0.self_attn.{kind}"
    path = store.folder / "blocks" / "00000.json"
    content = json.loads(path.read_text())
    for record in content["records"]:
        if record["name"] == layer:
            record["quantization"]["weight"] = {"method": method}
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=rf"is damaged at {layer}"):
        Store.open(store.folder, store.source).layer(layer)


def test_act_order_comes_back_with_its_permutation(source: SourceModel, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    spec = QuantSpec(method="gptq", bits=3, group_size=16, symmetric=False, act_order=True)
    weight = source.tensor(f"{name}.weight")
    inputs = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).double()
    made = quantize(weight, spec, inputs.T @ inputs / 64)
    plan = LayerPlan(
        name=name, kind="q_proj", block=0, shape=(32, 32), quantization={"weight": spec}
    )
    header = StoreHeader(
        key="k",
        asvd_q="0",
        source=source.identity,
        plan=Plan(float_type="float32", layers=(plan,)),
    )
    record = untouched(plan).model_copy(
        update={"quantization": plan.quantization, "bytes_after": made.nbytes}
    )
    store = Store.create(tmp_path / "store", header, source)
    store.write_block(0, [StoredLayer(record, {"weight": made})])
    again = Store.open(store.folder, source).layer(name)
    assert again.record == record
    assert torch.equal(again.weights["weight"].dequantize(), made.dequantize())
    ours, theirs = again.weights["weight"].tensors(), made.tensors()
    assert sorted(theirs) == ["codes", "permutation", "scales", "zeros"]
    assert all(torch.equal(ours[part], theirs[part]) for part in theirs)


def test_records_come_in_model_order(store: Store) -> None:
    assert [record.name for record in store.records()] == [layer.name for layer in store.plan]
    assert store.blocks() == [0, 1]


def test_writing_twice_gives_the_same_bytes(source: SourceModel, tmp_path: Path) -> None:
    one = hand_made_store(tmp_path / "one", source, choose)
    two = hand_made_store(tmp_path / "two", source, choose)
    assert hashes(one.folder) == hashes(two.folder)
    names = set(hashes(one.folder))
    stems = ("blocks/00000", "blocks/00001")
    assert names == {
        "store.json",
        *(f"{stem}.{kind}" for stem in stems for kind in ("json", "safetensors")),
    }


def test_nothing_is_written_outside_the_folder(source: SourceModel, tmp_path: Path) -> None:
    before = hashes(source.path)
    hand_made_store(tmp_path / "a" / "store", source, choose)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["store"]
    assert hashes(source.path) == before


def test_a_store_takes_the_place_of_one_it_was_told_of(store: Store) -> None:
    """Nothing of the old one is taken for its own."""
    other = store.header.model_copy(update={"key": "other"})
    new = Store.create(store.folder, other, store.source, replacing=["unknown", store.key])
    assert new.key == "other"
    assert list(hashes(store.folder)) == ["store.json"]
    assert not any(new.is_finished(block) for block in new.blocks())
    assert Store.create(store.folder, other, store.source, replacing=[store.key]).key == "other"


def test_setbacks_are_layers_that_are_not_as_planned(store: Store) -> None:
    assert store.setbacks == {}
    name = "model.layers.1.self_attn.v_proj"
    layers = [layer for layer in store.layers() if layer.record.block == 1]
    weight = store.source.tensor(f"{name}.weight")
    kept = {"form": "dense", "rank": None, "quantization": {"weight": None}, "reason": "failed"}
    for index, layer in enumerate(layers):
        if layer.record.name == name:
            record = layer.record.model_copy(update=kept)
            layers[index] = StoredLayer(record, {"weight": FloatWeight(weight)})
    store.write_block(1, layers)
    again = Store.open(store.folder, store.source)
    assert again.setbacks == {name: again.finished_plan.layer(name)}
    assert again.setbacks[name].reason == "failed"
    assert again.plan.with_layers(again.setbacks).ranks == again.finished_plan.ranks


def test_a_store_of_another_key_is_not_continued(store: Store) -> None:
    other = store.header.model_copy(update={"key": "other"})
    before = hashes(store.folder)
    with pytest.raises(StoreError, match=r"store of another recipe.*--fresh"):
        Store.create(store.folder, other, store.source)
    assert hashes(store.folder) == before


def test_a_store_is_not_opened_over_another_model(store: Store, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "other", hidden=32, intermediate=48, seed=1)
    with pytest.raises(StoreError, match="whose weights are not those in"):
        Store.open(store.folder, SourceModel.open(str(folder)))


def test_a_store_opens_over_a_copy_of_its_model(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.source.path, tmp_path / "moved")
    moved = Store.open(store.folder, SourceModel.open(str(tmp_path / "moved")))
    assert len(moved.records()) == 14


def test_an_unknown_layer_is_told_by_name(store: Store) -> None:
    with pytest.raises(StoreError, match=r"has no layer called model\.layers\.9\.x"):
        store.layer("model.layers.9.x")


def test_metadata_says_what_the_store_is_and_nothing_of_time_or_place(store: Store) -> None:
    metadata = store.metadata("gptq", {"bits": 4})
    assert metadata.format == "gptq"
    assert metadata.options == {"bits": 4}
    assert metadata.truncation_ranks == store.plan.ranks
    assert metadata.layers == tuple(store.records())
    assert metadata.store_key == store.key
    assert metadata.source == store.source.identity
    text = metadata.model_dump_json()
    assert ArtefactMetadata.model_validate_json(text) == metadata
    assert str(store.folder.parent) not in text
    assert store_metadata(store.folder) == store.metadata("store")


def test_a_record_says_the_same_as_its_plan(store: Store) -> None:
    for record, plan in zip(store.records(), store.plan, strict=True):
        assert record.as_plan().model_copy(update={"predicted_bytes": 0}) == plan
        assert record.slot_shapes() == plan.slot_shapes()
        share = plan.parameters / (plan.shape[0] * plan.shape[1])
        assert record.kept_ratio == pytest.approx(share, rel=1e-12)
        assert LayerRecord.model_validate(json.loads(record.model_dump_json())) == record
