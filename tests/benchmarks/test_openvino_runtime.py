"""The comparison with OpenVINO: what it tells of a runtime, which a script stands for here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from asvd_q.artefact import METADATA_FILE
from asvd_q.models import SourceModel
from asvd_q.plan import QuantSpec
from asvd_q_exporters.onnx import OnnxExporter, OnnxOptions
from benchmarks import openvino_runtime
from benchmarks.openvino_runtime import Found, compare, run_openvino
from tests.support import hand_made_store


@pytest.fixture(scope="module")
def artefact(place: Path) -> Path:
    source = SourceModel.open(str(place / "model"))
    spec = QuantSpec(bits=4, group_size=16)
    store = hand_made_store(place / "store", source, lambda *_: (None, spec))
    options = OnnxOptions(operators="standard", accuracy_level=0)
    folder = place / "onnx"
    folder.mkdir()
    OnnxExporter(options).write(store, folder)
    metadata = store.metadata("onnx", options.model_dump())
    (folder / METADATA_FILE).write_text(metadata.model_dump_json())
    return folder


def test_what_goes_to_the_other_interpreter_and_back(
    artefact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "_openvino.py"
    script.write_text(
        "import sys\n"
        "import numpy as np\n"
        "path, feeds, results, group, threads = sys.argv[1:]\n"
        "ids = np.load(feeds)['ids']\n"
        "logits = np.zeros((*ids.shape, 8192), np.float32)\n"
        "np.savez(results, logits=logits, seconds=0.5, kinds=['i4', 'i4', 'f32'], version='1')\n"
    )
    monkeypatch.setattr(openvino_runtime, "__file__", str(tmp_path / "openvino_runtime.py"))
    ids = torch.arange(20)[None]
    for found in compare(Path(sys.executable), artefact, ids, 1):
        assert found.error == pytest.approx(1.0)
        assert found.seconds == 0.5
        assert found.weights == {"i4": 2, "f32": 1}


def test_an_interpreter_without_openvino_is_named_in_one_line(artefact: Path) -> None:
    with pytest.raises(RuntimeError, match=r"OpenVINO failed: .*openvino"):
        run_openvino(Path(sys.executable), artefact, torch.arange(20)[None], 4, 0, 1)


@pytest.mark.parametrize(
    ("error", "read", "wrong"),
    [
        (1e-6, 14, None),
        (1e-6, 13, "13 of 14 products read codes"),
        (1e-3, 14, "logits differ by 1.0e-03, more than 1e-04"),
    ],
)
def test_what_is_judged(artefact: Path, error: float, read: int, wrong: str | None) -> None:
    """The model has two blocks of seven layers, all in codes."""
    rounded = Found("by default", 1.0, 0.5, 0.1, {"f32": 99}, "1")
    exact = Found("as they are", error, 1.0, 0.1, {"i4": read, "f32": 9}, "1")
    assert openvino_runtime._wrong([exact, rounded], artefact) == wrong
