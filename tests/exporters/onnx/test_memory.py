"""An export needs the memory of a few matrices, not of the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import SourceModel, hand_made_store, tiny_llama

_PROGRAM = """
import sys
from pathlib import Path
from asvd_q.evaluation.memory import resident_memory
from asvd_q.models import SourceModel
from asvd_q.store import Store
from asvd_q_exporters.onnx import OnnxExporter, OnnxOptions

def export(folder, external):
    store = Store.open(folder / "store", SourceModel.open(str(folder / "model")))
    (folder / "onnx").mkdir()
    OnnxExporter(OnnxOptions(external_data=external)).write(store, folder / "onnx")
    return resident_memory().peak

small, large, external = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "True"
before = export(small, external)
print(export(large, external) - before)
"""


def grown(folder: Path, sizes: dict[str, Any], external_data: bool) -> int:
    """Bytes by which a model takes more memory to export than a small one, in a process apart."""
    for name, chosen in (("small", {"hidden": 64}), ("large", sizes)):
        source = SourceModel.open(str(tiny_llama(folder / name / "model", **chosen)))
        hand_made_store(folder / name / "store", source, lambda *_: (None, None))
    arguments = [str(folder / "small"), str(folder / "large"), str(external_data)]
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout.strip())


@pytest.mark.slow
@pytest.mark.parametrize("external_data", [True, False])
def test_peak_memory_is_far_below_the_weights(tmp_path: Path, external_data: bool) -> None:
    sizes = {"hidden": 1024, "intermediate": 4096, "layers": 8, "heads": 8}
    found = grown(tmp_path, sizes, external_data)
    matrix = 4096 * 1024 * 4
    written = sum(path.stat().st_size for path in (tmp_path / "large" / "onnx").iterdir())
    assert written > 28 * matrix
    # Two that become one product, and that product; and of the mapped files of the source and the
    # store, which count, as many pages as the system left in memory: 3 to 9 in all.
    assert found < 13 * matrix


@pytest.mark.slow
def test_an_embedding_is_in_memory_once_beside_the_sources(tmp_path: Path) -> None:
    """In large models it is the largest matrix by far."""
    vocabulary, hidden = 300_000, 256
    sizes = {"vocabulary": vocabulary, "hidden": hidden, "tied": True, "dtype": torch.bfloat16}
    found = grown(tmp_path, sizes, True)
    # In float32, and the source's mapped file in bfloat16.
    assert found < 1.7 * vocabulary * hidden * 4
