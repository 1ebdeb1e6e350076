"""The benchmark of latency: ratios within a runtime, and the script on a small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asvd_q.evaluation.latency import Compared, Ratio, Timing, Turn
from benchmarks import latency
from benchmarks._claims import CLAIM_FAILED
from benchmarks.latency import points_of


def compared(name: str, first: float, rest: float) -> Compared:
    timing = Timing(1, 8, 4, (Turn(first, rest), Turn(2 * first, 2 * rest)))
    nothing = Ratio(0, 0, 0)
    return Compared(name, "a runtime 1.0", timing, nothing, nothing, nothing)


def test_a_model_is_compared_within_its_runtime() -> None:
    points = points_of(
        [
            compared("torch: dense", 1.0, 8.0),
            compared("ONNX Runtime: dense", 2.0, 4.0),
            compared("ONNX Runtime: ASVD", 4.0, 2.0),
        ]
    )
    assert [(point.runtime, point.model) for point in points] == [
        ("torch", "dense"),
        ("ONNX Runtime", "dense"),
        ("ONNX Runtime", "ASVD"),
    ]
    last = points[-1]
    assert (last.first_token_ratio, last.decode_ratio, last.total_ratio) == (0.5, 2.0, 1.0)
    assert points[0].decode_ratio == 1


@pytest.mark.parametrize(("speed", "holds"), [(2.0, True), (0.5, False)])
def test_the_script(
    speed: float,
    holds: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [
        f"{runtime}: {name}" for runtime in ("torch", "ONNX Runtime") for name in latency.MODELS
    ]
    found = [compared(name, 1.0, 1 / speed if "GPTQ" in name else 1.0) for name in names]
    monkeypatch.setattr(latency, "_runs", lambda: dict.fromkeys(latency.MODELS, tmp_path))
    monkeypatch.setattr(latency, "open_anything", lambda path: path)
    monkeypatch.setattr(latency, "models_speed", lambda opened, load, progress: found)
    file = tmp_path / "latency.json"
    monkeypatch.setattr("sys.argv", ["latency", "--json", str(file)])
    if holds:
        latency.main()
    else:
        with pytest.raises(SystemExit) as ended:
            latency.main()
        assert ended.value.code == CLAIM_FAILED
    assert len(json.loads(file.read_text())) == len(names)
    shown = capsys.readouterr()
    assert "GPTQ 4" in shown.out
    assert ("no faster in ONNX Runtime" in shown.err) is not holds
