"""Sensitivities on disk: only fresh ones come back."""

from __future__ import annotations

from pathlib import Path

from asvd_q.search.cache import LossCache

_LAYER = "model.layers.0.mlp.up_proj"


def test_losses_come_back(tmp_path: Path) -> None:
    LossCache(tmp_path, "a" * 64).add(_LAYER, {8: 0.25, 16: -1e-7})
    assert LossCache(tmp_path, "a" * 64).load() == {_LAYER: {8: 0.25, 16: -1e-7}}


def test_ranks_are_added_to_those_there(tmp_path: Path) -> None:
    cache = LossCache(tmp_path, "a" * 64)
    cache.add(_LAYER, {8: 0.25})
    cache.add(_LAYER, {16: 0.125})
    assert cache.load() == {_LAYER: {8: 0.25, 16: 0.125}}


def test_a_layer_without_losses_is_remembered(tmp_path: Path) -> None:
    cache = LossCache(tmp_path, "a" * 64)
    cache.add(_LAYER, {})
    assert cache.load() == {_LAYER: {}}


def test_another_key_sees_nothing(tmp_path: Path) -> None:
    LossCache(tmp_path, "a" * 64).add(_LAYER, {8: 0.25})
    assert LossCache(tmp_path, "b" * 64).load() == {}
    # The folder's name holds only the head of the key; the entry holds all of it.
    assert LossCache(tmp_path, "a" * 63 + "b").load() == {}


def test_a_damaged_entry_is_measured_again(tmp_path: Path) -> None:
    cache = LossCache(tmp_path, "a" * 64)
    cache.add(_LAYER, {8: 0.25})
    (entry,) = tmp_path.rglob("*.json")
    entry.write_text(entry.read_text()[:20])
    assert cache.load() == {}
