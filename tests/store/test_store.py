"""The store: what goes in comes out, and what is damaged or foreign is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asvd_q.errors import ResourceError, StoreError
from asvd_q.files import sha256
from asvd_q.models import SourceModel
from asvd_q.models.skeleton import build_skeleton
from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q.quantization import FloatWeight, StoredWeight, quantize
from asvd_q.records import ArtefactMetadata, LayerRecord
from asvd_q.store import Store, StoredLayer, StoreHeader, is_store, store_metadata
from tests.models.families import save_family
from tests.support import Choice, hand_made_store, tiny_llama

CHOICES: dict[str, Choice] = {
    "q_proj": (8, None),
    "k_proj": (None, QuantSpec(bits=3, group_size=16, symmetric=False)),
    "v_proj": (4, QuantSpec(bits=4, group_size=32, clip="mse")),
    "o_proj": (None, QuantSpec(method="nf4", group_size=128)),
    "gate_proj": (6, QuantSpec(bits=8, group_size=-1, symmetric=False)),
    "up_proj": (5, QuantSpec(method="nf4", double_quant=True)),
}
"""Every kind of content; the other layers are left alone."""


def choose(name: str, shape: tuple[int, int]) -> Choice:
    return CHOICES.get(name.rsplit(".", 1)[-1], (None, None))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    folder = tmp_path_factory.mktemp("model")
    return SourceModel.open(str(tiny_llama(folder, hidden=32, intermediate=48)))


@pytest.fixture
def store(source: SourceModel, tmp_path: Path) -> Store:
    return hand_made_store(tmp_path / "store", source, choose)


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


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


def drop_last_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-10] ^= 1
    path.write_bytes(raw)


def empty_object(path: Path) -> None:
    path.write_text("{}")


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "tensors-truncated": ("safetensors", drop_last_bytes),
    "tensors-altered": ("safetensors", flip_a_byte),
    "tensors-missing": ("safetensors", Path.unlink),
    "record-missing": ("json", Path.unlink),
    "record-truncated": ("json", drop_last_bytes),
    "record-empty": ("json", empty_object),
    "record-no-text": ("json", lambda path: path.write_bytes(b"\xff\xfe\x00")),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_block_is_unfinished_and_the_store_does_not_open(kind: str, store: Store) -> None:
    suffix, damage = DAMAGE[kind]
    if kind == "record-truncated":
        (store.folder / "blocks" / "00001.json").write_text("{")
    else:
        damage(store.folder / "blocks" / f"00001.{suffix}")
    assert store.is_finished(0)
    assert not store.is_finished(1)
    with pytest.raises(StoreError, match=r"not finished or damaged \(block 00001\)") as caught:
        Store.open(store.folder, store.source)
    assert str(store.folder) in str(caught.value)


def test_a_block_without_its_record_is_written_again(store: Store) -> None:
    """A run killed between the two files must not take the tensors for granted."""
    before = hashes(store.folder)
    layers = [layer for layer in store.layers() if layer.record.block == 1]
    (store.folder / "blocks" / "00001.json").unlink()
    again = Store.create(store.folder, store.header, store.source)
    assert [block for block in again.blocks() if not again.is_finished(block)] == [1]
    assert [record.block for record in again.records()] == [0] * 7
    again.write_block(1, layers)
    assert hashes(store.folder) == before


def test_the_record_is_gone_while_tensors_are_rewritten(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [layer for layer in store.layers() if layer.record.block == 1]

    def fail(tensors: object, path: object) -> None:
        assert not (store.folder / "blocks" / "00001.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("asvd_q.store.store.save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        store.write_block(1, layers)
    assert not store.is_finished(1)
    assert not list(store.folder.rglob("*.partial"))


def test_a_disk_that_cannot_be_written_is_told_in_one_line(store: Store) -> None:
    layers = [layer for layer in store.layers() if layer.record.block == 1]
    shutil.rmtree(store.folder / "blocks")
    with pytest.raises(ResourceError, match=r"cannot write .*00001\.safetensors") as caught:
        store.write_block(1, layers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"version": 2}'])
def test_a_damaged_header_is_told_in_one_line(content: str, store: Store) -> None:
    (store.folder / "store.json").write_text(content)
    for read in (Store.open, lambda folder, source: Store.create(folder, store.header, source)):
        with pytest.raises(StoreError, match=r"store\.json is damaged or of another") as caught:
            read(store.folder, store.source)
        assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_store(tmp_path: Path, source: SourceModel) -> None:
    assert not is_store(tmp_path)
    with pytest.raises(StoreError, match="is not a store"):
        Store.open(tmp_path, source)


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


def test_tensors_damaged_after_opening_are_told_by_layer(store: Store) -> None:
    drop_last_bytes(store.folder / "blocks" / "00000.safetensors")
    with pytest.raises(
        StoreError, match=r"00000\.safetensors is damaged at model\.layers\.0\.self"
    ):
        store.layer("model.layers.0.self_attn.q_proj")


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
