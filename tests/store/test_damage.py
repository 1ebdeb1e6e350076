"""A store that is damaged or unfinished says so in one line, and is made whole again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from asvd_q.errors import ResourceError, StoreError
from asvd_q.models import SourceModel
from asvd_q.store import Store, is_store
from tests.compression.job import hashes


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


def test_tensors_damaged_after_opening_are_told_by_layer(store: Store) -> None:
    drop_last_bytes(store.folder / "blocks" / "00000.safetensors")
    with pytest.raises(
        StoreError, match=r"00000\.safetensors is damaged at model\.layers\.0\.self"
    ):
        store.layer("model.layers.0.self_attn.q_proj")
