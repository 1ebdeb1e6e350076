"""A loop that was stopped, by an error or by SIGKILL, ends with the bytes of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.compression.job import compress_to, hashes
from tests.support import tiny_llama

REPOSITORY = Path(__file__).parents[2]
BLOCKS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return tiny_llama(folder, layers=BLOCKS, hidden=32, intermediate=48, vocabulary=64)


def options(*, sequential: bool) -> dict[str, Any]:
    return {
        "sequential": sequential,
        "decompose": {"ranks": {"*": 9}, "lm_head": True},
        "quantize": {"bits": 4, "group_size": 16},
    }


class StoppedError(Exception):
    """Stands for any interruption that Python still sees."""


@pytest.mark.parametrize("sequential", [False, True], ids=["from-dense", "sequential"])
@pytest.mark.parametrize("after", range(1, BLOCKS + 2))
def test_interrupted_after_any_block(
    after: int, sequential: bool, model: Path, tmp_path: Path
) -> None:
    undisturbed = compress_to(tmp_path / "undisturbed", model, **options(sequential=sequential))

    def stop(stage: str, done: int, total: int) -> None:
        if done == after:
            raise StoppedError

    with pytest.raises(StoppedError):
        compress_to(tmp_path / "store", model, progress=stop, **options(sequential=sequential))
    finished = hashes(tmp_path / "store")
    assert len(finished) == 1 + 2 * after
    found = compress_to(tmp_path / "store", model, **options(sequential=sequential))
    assert hashes(found.folder) == hashes(undisturbed.folder)
    assert finished.items() <= hashes(found.folder).items()


def test_interrupted_again_and_again(model: Path, tmp_path: Path) -> None:
    """Progress is made on every run, however short."""
    undisturbed = compress_to(tmp_path / "undisturbed", model, **options(sequential=True))
    count = 1
    while True:

        def stop(stage: str, done: int, total: int, limit: int = count) -> None:
            if done == limit:
                raise StoppedError

        try:
            compress_to(tmp_path / "store", model, progress=stop, **options(sequential=True))
        except StoppedError:
            count += 1
        else:
            break
    assert count == BLOCKS + 2
    assert hashes(tmp_path / "store") == hashes(undisturbed.folder)


def test_a_block_damaged_in_the_middle_is_made_again_from_the_same_inputs(
    model: Path, tmp_path: Path
) -> None:
    """The blocks after it are whole; it alone is compressed again, and alike."""
    store = compress_to(tmp_path / "store", model, **options(sequential=True))
    before = hashes(store.folder)
    (store.folder / "blocks" / "00001.safetensors").write_bytes(b"")
    compress_to(tmp_path / "store", model, **options(sequential=True))
    assert hashes(store.folder) == before


@pytest.mark.parametrize(
    ("where", "block", "sequential"),
    [
        pytest.param("after", 0, True, id="after-first"),
        pytest.param("after", 2, False, id="after-third", marks=pytest.mark.slow),
        pytest.param("tensors", 1, False, id="before-tensors", marks=pytest.mark.slow),
        pytest.param("record", 2, True, id="between-tensors-and-record"),
    ],
)
def test_killed_with_sigkill(
    where: str, block: int, sequential: bool, model: Path, tmp_path: Path
) -> None:
    chosen = options(sequential=sequential)
    undisturbed = compress_to(tmp_path / "undisturbed", model, **chosen)
    folder = tmp_path / "store"
    arguments = [str(folder), str(model), where, str(block), json.dumps(chosen)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.compression.killed", *arguments],
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(list(folder.glob("blocks/*.json"))) == (block + 1 if where == "after" else block)
    found = compress_to(folder, model, **chosen)
    assert hashes(found.folder) == hashes(undisturbed.folder)
