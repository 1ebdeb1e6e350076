"""Memory does not depend on the number of blocks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from asvd_q.models import blockwise
from asvd_q.statistics.collectors import SiteCollector, SiteStatistics
from tests.compression.job import compress_to
from tests.support import tiny_llama

REPOSITORY = Path(__file__).parents[2]
PREFIX = "model.layers."


class Alive:
    """Counts the blocks of which some tensor is still alive."""

    def __init__(self) -> None:
        self._tensors: list[tuple[int, weakref.ref[torch.Tensor]]] = []
        self.most = 0
        self.seen: set[int] = set()

    def add(self, block: int, tensors: list[torch.Tensor]) -> None:
        self._tensors = [entry for entry in self._tensors if entry[1]() is not None]
        self._tensors += [(block, weakref.ref(tensor)) for tensor in tensors]
        self.seen.add(block)
        self.most = max(self.most, len({index for index, _ in self._tensors}))


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> Alive:
    """Of every parameter of every block that is loaded."""
    alive, original = Alive(), blockwise.assemble

    def spy(skeleton: nn.Module, prefix: str, *rest: Any, **options: Any) -> nn.Module:
        module = original(skeleton, prefix, *rest, **options)
        if prefix.startswith(PREFIX):
            alive.add(int(prefix.removeprefix(PREFIX)), list(module.parameters()))
        return module

    monkeypatch.setattr(blockwise, "assemble", spy)
    return alive


@pytest.fixture
def grams(monkeypatch: pytest.MonkeyPatch) -> Alive:
    """Of every sum of products and every Gram made from one."""
    alive, create, result = Alive(), SiteCollector.__init__, SiteCollector.result

    def spy_create(self: SiteCollector, *args: Any) -> None:
        create(self, *args)
        assert self.site.block is not None
        alive.add(self.site.block, [self._products])

    def spy_result(self: SiteCollector) -> SiteStatistics:
        found = result(self)
        assert self.site.block is not None
        alive.add(self.site.block, [found.gram])
        return found

    monkeypatch.setattr(SiteCollector, "__init__", spy_create)
    monkeypatch.setattr(SiteCollector, "result", spy_result)
    return alive


@pytest.mark.parametrize("scaling", ["whitening", "fisher"])
@pytest.mark.parametrize("sequential", [False, True], ids=["from-dense", "sequential"])
def test_at_most_two_of_24_blocks_are_alive(
    sequential: bool, scaling: str, tmp_path: Path, weights: Alive, grams: Alive
) -> None:
    model = tiny_llama(tmp_path / "model", layers=24, hidden=16, intermediate=24, vocabulary=64)
    scratch = tmp_path / "scratch"
    store = compress_to(
        tmp_path / "store",
        model,
        decompose={"ranks": {"*": 5}, "scaling": scaling},
        sequential=sequential,
        quantize={"bits": 4, "group_size": 16},
        scratch=scratch,
    )
    assert len(store.records()) == 24 * 7
    assert weights.seen == grams.seen == set(range(24))
    assert weights.most <= 2
    assert grams.most <= 2
    assert list(scratch.glob("*.bin"))


_PROGRAM = """
import json, re, sys
from pathlib import Path
from tests.compression.job import compress_to
store, model, scratch, options = sys.argv[1:]
compress_to(Path(store), Path(model), scratch=Path(scratch), **json.loads(options))
peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
print(int(peak[1]) * 1024)
"""
# Not ru_maxrss: Linux starts a child's with what its parent had, and a test's parent is large.

_RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc otherwise keeps what was freed in a heap whose holes come and go by chance."""


def peak_memory(folder: Path, layers: int, options: dict[str, Any]) -> int:
    """Bytes, of a process of its own."""
    model = tiny_llama(
        folder / "model",
        layers=layers,
        hidden=512,
        intermediate=1376,
        vocabulary=64,
        dtype=torch.bfloat16,
    )
    arguments = [folder / "store", model, folder / "scratch", json.dumps(options)]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments],
        cwd=REPOSITORY,
        env=os.environ | _RETURN_FREED_MEMORY,
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("sequential", [False, True], ids=["from-dense", "sequential"])
def test_peak_memory_does_not_grow_with_the_number_of_blocks(
    sequential: bool, tmp_path: Path
) -> None:
    options = {
        "decompose": {"ranks": {"*": 64}, "include": ["q_proj"]},
        "sequential": sequential,
        "quantize": {"bits": 4, "include": ["q_proj", "down_proj"]},
    }
    peaks = {layers: peak_memory(tmp_path / str(layers), layers, options) for layers in (12, 24)}
    # Attention with two heads of four for keys and values, and three matrices of the MLP.
    block = 4 * (512 * (512 + 256 + 256 + 512) + 3 * 512 * 1376)
    assert block > 10e6
    assert peaks[24] - peaks[12] < block
