"""The benchmark of kernel times as a whole, on a small model; what it measures is not judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import kernel_times
from tests.support import tiny_llama


def test_every_shape_is_timed_in_every_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = tiny_llama(tmp_path / "model"), tmp_path / "times.json"
    argv = ["kernel_times", "--model", str(model), "--shapes", "40x24", "--bits", "2,8"]
    monkeypatch.setattr("sys.argv", [*argv, "--json", str(file)])
    kernel_times.main()
    content = json.loads(file.read_text())
    shapes = [tuple(point["shape"]) for point in content["points"]]
    assert shapes == [(64, 64), (32, 64), (96, 64), (64, 96), (128, 64), (40, 24)]
    for point in content["points"]:
        assert list(point["seconds"]) == ["float", "2 bits", "4 bits", "8 bits", "NF4"]
        assert min(point["seconds"].values()) > 0
        assert point["ratio"] == point["seconds"]["float"] / point["seconds"]["4 bits"]
    assert content["holds"]
    assert "40 × 24" in capsys.readouterr().out
