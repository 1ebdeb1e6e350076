"""A search that SIGKILL ended ten times finds, in the end, what one finds that was left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.runner import write_recipe
from tests.support import WREN, tiny_llama

REPOSITORY = Path(__file__).parents[2]
BLOCKS = 3


SENSITIVITIES = ("exact", "fast")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tests.search.killed` leaves, one folder per sensitivity."""
    folder = tmp_path_factory.mktemp("killed")
    model = tiny_llama(folder / "model", layers=BLOCKS, hidden=32, intermediate=48, vocabulary=8192)
    for file in WREN.glob("tokenizer*"):
        shutil.copy(file, model)
    text = folder / "text.txt"
    text.write_text((WREN / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    calibration = {"corpus": str(text), "samples": 3, "window": 16, "batch_size": 2}
    for sensitivity in SENSITIVITIES:
        (folder / sensitivity).mkdir()
        write_recipe(
            folder / sensitivity,
            model={"path": str(model)},
            calibration=calibration | {"hidden_states": "disk"},
            decompose={"rank_multiple": 2},
            search={"kept_ratio": 0.7, "sensitivity": sensitivity},
        )
    folders = [str(folder / sensitivity) for sensitivity in SENSITIVITIES]
    done = subprocess.run(
        [sys.executable, "-m", "tests.search.killed", "233", *folders],
        cwd=REPOSITORY,
        # With one thread there is none that a fork could lose.
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    return folder


def results(folder: Path) -> dict[str, bytes]:
    """Ranks, table and losses, and whatever should not be there; the rest is plots."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".yaml", ".json", ".partial") or "scratch" in path.parts
    }


@pytest.mark.slow
@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_killed_ten_times(sensitivity: str, folder: Path) -> None:
    report = json.loads((folder / sensitivity / "report.json").read_text())
    deaths = report["deaths"]
    assert [death["exitcode"] for death in deaths] == [-signal.SIGKILL] * 10, deaths
    assert report["end"] == 0
    kept = [death["kept"] for death in deaths]
    assert kept[:2] == [0, 0]
    assert kept == sorted(kept)  # what was measured is never lost
    assert 0 < kept[-2] < 7 * BLOCKS <= kept[-1]
    undisturbed = results(folder / sensitivity / "undisturbed")
    assert len(undisturbed) >= 2 + 7 * BLOCKS
    assert "search/ranks.yaml" in undisturbed
    assert results(folder / sensitivity / "killed") == undisturbed
