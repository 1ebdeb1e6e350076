"""The GPTQ benchmark as a whole, at a small size."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest
import torch

from benchmarks import gptq_speed


def test_both_are_timed_and_their_results_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    file = tmp_path / "speed.json"
    argv = ["gptq_speed", "--shapes", "64x96,32x64", "--rounds", "3", "--group", "32"]
    monkeypatch.setattr("sys.argv", [*argv, "--threads", str(threads), "--json", str(file)])
    gptq_speed.main()
    content = json.loads(file.read_text())
    assert [point["shape"] for point in content["points"]] == [[64, 96], [32, 64]]
    for point in content["points"]:
        assert len(point["ours"]) == len(point["gptqmodel"]) == 3
        assert point["ratio"] == median(point["gptqmodel"]) / median(point["ours"])
        assert point["equal_codes"] > 0.99
        assert point["error"] == pytest.approx(1, abs=1e-2)
    assert "64 × 96" in capsys.readouterr().out
