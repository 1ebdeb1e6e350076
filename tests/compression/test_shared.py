"""Compressions that share the dense model's statistics end with the same bytes as alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asvd_q.compression import loop
from asvd_q.compression.shared import SharedStatistics, statistics_bytes
from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.skeleton import build_skeleton
from tests.compression.job import compress_to, hashes
from tests.support import tiny_llama

_JOBS: list[dict[str, Any]] = [
    {"decompose": {"scaling": "fisher", "ranks": {"q_proj": 8}}},
    {"decompose": {"scaling": "whitening", "kept_ratio": 0.6, "rank_multiple": 4}},
    {"decompose": {"scaling": "fisher", "kept_ratio": 0.6, "rank_multiple": 4}},
    {"quantize": {"method": "gptq", "bits": 4, "group_size": 16}},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("shared") / "model", vocabulary=64)


def test_the_bytes_are_those_of_a_compression_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, run = SharedStatistics(), []
    original = BlockwiseModel.run_block

    def spy(self: BlockwiseModel, *args: Any) -> Any:
        run.append(args)
        return original(self, *args)

    monkeypatch.setattr(BlockwiseModel, "run_block", spy)
    for index, job in enumerate(_JOBS):
        alone = tmp_path / f"alone-{index}"
        compress_to(alone, model, **job)
        run.clear()
        together = tmp_path / f"together-{index}"
        compress_to(together, model, shared=shared, **job)
        assert hashes(together) == hashes(alone)
        assert bool(run) == (index == 0)


@pytest.mark.parametrize(
    "job",
    [
        {"sequential": True},
        {"sequential": True, "decompose": _JOBS[1]["decompose"] | {"refit": True}},
    ],
    ids=["sequential", "refit"],
)
def test_what_follows_the_compressed_model_is_not_shared(
    job: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    shared = SharedStatistics()
    compress_to(tmp_path / "dense", model, shared=shared, **_JOBS[1])
    blocks = dict(shared.blocks)
    compress_to(tmp_path / "together", model, shared=shared, **{**_JOBS[1], **job})
    compress_to(tmp_path / "alone", model, **{**_JOBS[1], **job})
    assert hashes(tmp_path / "together") == hashes(tmp_path / "alone")
    assert shared.blocks == blocks


def test_an_interrupted_compression_leaves_what_it_has(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, whole = SharedStatistics(), loop.compress_layer

    def interrupted(weight: Any, plan: Any, *args: Any, **options: Any) -> Any:
        if plan.block == 1:
            raise KeyboardInterrupt
        return whole(weight, plan, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "compress_layer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress_to(tmp_path / "store", model, shared=shared, **_JOBS[1])
    assert list(shared.blocks) == [0]
    compress_to(tmp_path / "store", model, shared=shared, **_JOBS[1])
    compress_to(tmp_path / "alone", model, **_JOBS[1])
    assert hashes(tmp_path / "store") == hashes(tmp_path / "alone")


def test_the_room_they_take_is_bounded(model: Path, tmp_path: Path) -> None:
    shared = SharedStatistics()
    compress_to(tmp_path / "store", model, shared=shared, **_JOBS[1])
    grams = {
        id(found.gram): found.gram.nbytes
        for block in shared.blocks.values()
        for found in block.values()
    }
    weights = build_skeleton(SourceModel.open(str(model))).weights
    assert sum(grams.values()) <= statistics_bytes(weights)
