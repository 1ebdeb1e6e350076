"""Graphs are valid by ONNX's own checker where the runtime would not mind."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from asvd_q.models import SourceModel
from asvd_q_exporters.onnx import OnnxOptions
from tests.exporters.onnx.conftest import export
from tests.families.models import MODELS, save_model
from tests.support import hand_made_store


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param("gemma2", {}, id="a norm's scale is computed behind the sum"),
        pytest.param("llama", {"head_dim": 12}, id="norms alone are the runtime's own operators"),
    ],
)
def test_the_checker_accepts_a_model_of_floats(
    family: str, changes: dict[str, int], tmp_path: Path
) -> None:
    model_class, options = MODELS[family]
    saved = save_model(tmp_path / "model", model_class, options | changes, tokenizer=False)
    source = SourceModel.open(str(saved))
    store = hand_made_store(tmp_path / "store", source, lambda *_: (16, None))
    made = export(store, tmp_path / "onnx", OnnxOptions())
    model = onnx.load(made.folder / "model.onnx")
    fused = [node for node in model.graph.node if node.op_type.startswith("SkipSimplified")]
    assert fused
    onnx.checker.check_model(model)
