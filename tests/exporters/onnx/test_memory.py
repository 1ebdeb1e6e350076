"""An export needs the memory of a few matrices, not of the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import SourceModel, hand_made_store, tiny_llama

_PROGRAM = """
import resource, sys
from pathlib import Path
from asvd_q.models import SourceModel
from asvd_q.store import Store
from asvd_q_exporters.onnx import OnnxExporter, OnnxOptions

def export(folder, external):
    store = Store.open(folder / "store", SourceModel.open(str(folder / "model")))
    (folder / "onnx").mkdir()
    OnnxExporter(OnnxOptions(external_data=external)).write(store, folder / "onnx")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

small, large, external = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "True"
before = export(small, external)
print((export(large, external) - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("external_data", [True, False])
def test_peak_memory_is_far_below_the_weights(tmp_path: Path, external_data: bool) -> None:
    for name, sizes in (
        ("small", {"hidden": 64}),
        ("large", {"hidden": 1024, "intermediate": 4096, "layers": 4, "heads": 8}),
    ):
        model = tiny_llama(tmp_path / name / "model", **sizes)
        source = SourceModel.open(str(model))
        hand_made_store(tmp_path / name / "store", source, lambda *_: (None, None))
    arguments = [str(tmp_path / "small"), str(tmp_path / "large"), str(external_data)]
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    grown = int(run.stdout.strip())
    matrix = 4096 * 1024 * 4
    written = sum(path.stat().st_size for path in (tmp_path / "large" / "onnx").iterdir())
    assert written > 14 * matrix
    assert grown < 6 * matrix
