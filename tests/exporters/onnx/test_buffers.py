"""Keys and values that are written in place: nothing that is still in use is lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from asvd_q.artefact import Runner
from asvd_q_exporters.onnx.buffers import Buffers, SharedPast
from tests.exporters.onnx.conftest import Export
from tests.exporters.onnx.graphs import Array
from tests.exporters.onnx.reference import tokens


def _arrays(batch: int, capacity: int, type_: type[np.floating] = np.float32) -> list[Array]:
    """Keys and values of one layer, 2 heads of width 4."""
    random = np.random.default_rng(batch)
    return [random.normal(size=(batch, 2, capacity, 4)).astype(type_) for _ in range(2)]


def _past(arrays: Sequence[Array], length: int) -> SharedPast:
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array.copy()) for array in arrays]
    return SharedPast(Buffers(values, arrays[0].shape[2], length), length)


def _held(past: SharedPast) -> list[Array]:
    """What it has, without the room behind."""
    return [value.numpy()[:, :, : past.length] for value in past.buffers.values]


def _same(one: Sequence[Array], other: Sequence[Array]) -> bool:
    return all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


def test_a_past_with_room_is_written_to_where_it_lies() -> None:
    past = _past(_arrays(2, 16), 10)
    assert past.with_room(6) is past
    longer = past.extended(6)
    assert longer.length == 16
    assert longer.buffers is past.buffers


@pytest.mark.parametrize("type_", [np.float32, np.float16])
@pytest.mark.parametrize("room", [7, 200])
def test_a_past_without_room_moves_and_keeps_what_it_had(
    room: int, type_: type[np.floating]
) -> None:
    arrays = _arrays(2, 16, type_)
    past = _past(arrays, 10)
    moved = past.with_room(room)
    assert moved.length == 10
    assert moved.buffers.capacity >= 10 + room
    assert {value.shape()[2] for value in moved.buffers.values} == {moved.buffers.capacity}
    assert _same(_held(moved), [array[:, :, :10] for array in arrays])
    assert all(value.numpy().dtype == type_ for value in moved.buffers.values)
    assert not any(value.numpy()[:, :, 10:].any() for value in moved.buffers.values)


def test_room_doubles_so_that_moves_are_rare() -> None:
    past = _past(_arrays(1, 1), 1)
    moves = 0
    for _ in range(1000):
        roomy = past.with_room(1)
        moves += roomy is not past
        past = roomy.extended(1)
    assert past.length == 1001
    assert moves < 6


def test_an_older_past_gets_memory_of_its_own() -> None:
    arrays = _arrays(1, 16)
    past = _past(arrays, 4)
    newer = past.with_room(3).extended(3)
    kept = [array.copy() for array in _held(newer)]
    again = past.with_room(2)
    assert again.buffers is not past.buffers
    for value in again.buffers.values:
        value.numpy()[:, :, 4:6] = -1
    assert _same(_held(newer), kept)
    assert _same(_held(again), [array[:, :, :4] for array in arrays])
    assert newer.with_room(2) is newer  # the newest one stays where it is


def test_rows_apart_and_together_again() -> None:
    arrays = _arrays(3, 16)
    past = _past(arrays, 5)
    rows = past.rows(40)
    for index, row in enumerate(rows):
        assert row.with_room(40) is row
        assert _same(_held(row), [array[index : index + 1, :, :5] for array in arrays])
    together = SharedPast.of_rows([row.extended(2) for row in rows])
    assert together.length == together.buffers.written == 7
    assert together.buffers.capacity == rows[0].buffers.capacity
    assert _same([part[:, :, :5] for part in _held(together)], [part[:, :, :5] for part in arrays])
    for value in rows[0].buffers.values:  # what is together shares nothing with the rows
        value.numpy()[:] = 0
    assert all(array[0, :, :5].any() for array in _held(together))


@pytest.fixture(scope="module")
def runner(mixed: Export) -> Runner:
    return mixed.exporter.open(mixed.folder)


def _decode(runner: Runner, cache: object, ids: Tensor) -> tuple[Tensor, object]:
    """Logits of tokens given one by one behind a cache."""
    found = []
    for column in ids.split(1, dim=1):
        logits, cache = runner.forward(column, cache)
        found.append(logits)
    return torch.cat(found, dim=1), cache


@pytest.mark.parametrize("batch", [1, 2])
def test_a_cache_used_again_is_as_it_was(batch: int, runner: Runner) -> None:
    prompt, *ways = tokens(batch, 7 + 3 * 5).split([7, 5, 5, 5], dim=1)
    expected = [_decode(runner, runner.forward(prompt)[1], way)[0] for way in ways]
    assert not torch.equal(expected[0], expected[1])
    first = runner.forward(prompt)[1]
    assert isinstance(first, SharedPast)
    ends = []
    for way, wanted in zip(ways, expected, strict=True):
        found, end = _decode(runner, first, way)
        assert torch.equal(found, wanted)
        ends.append(end)
    # Each way goes on from its own end, in any order.
    for end, way in reversed(list(zip(ends, ways, strict=True))):
        fresh = runner.forward(torch.cat((prompt, way), dim=1))[1]
        found, expected_next = (_decode(runner, one, ways[0][:, :2])[0] for one in (end, fresh))
        assert torch.allclose(found, expected_next, rtol=1e-4, atol=1e-5)


def test_a_cache_that_grows_out_of_its_memory(runner: Runner) -> None:
    ids = tokens(2, 100)
    cache = runner.forward(ids[:, :3])[1]
    found, cache = _decode(runner, cache, ids[:, 3:])
    whole = runner.forward(ids)[0]
    assert torch.allclose(found, whole[:, 3:], rtol=1e-4, atol=1e-4)
    assert isinstance(cache, SharedPast)
    assert cache.length == 100


def test_a_cache_goes_on_after_rows_went_one_by_one(runner: Runner) -> None:
    ids = tokens(3, 20)
    cache = runner.forward(ids[:, :6])[1]
    parts, cache = runner.forward(ids[:, 6:15], cache)  # several tokens behind a batch
    rest, _ = _decode(runner, cache, ids[:, 15:])
    whole = runner.forward(ids)[0][:, 6:]
    assert torch.allclose(torch.cat((parts, rest), dim=1), whole, rtol=1e-4, atol=1e-4)
