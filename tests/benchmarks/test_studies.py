"""The scripts that are studies: what they vary, and that they go on where they stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from asvd_q.study.workbench import Workbench
from benchmarks import cross_domain, scaling

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a script and gives what its JSON then holds."""

    def call(script: ModuleType, *arguments: str) -> dict[str, Any]:
        json_file = tmp_path / "numbers.json"
        own = ["--model", place / "model", "--data", place, "--corpora", "notes,lines"]
        sizes = ["--window", 24, "--windows", 2, "--samples", 4]
        files = ["--json", json_file, "--plot", tmp_path, "--cache", tmp_path / "cache"]
        command = [script.__name__, *own, *sizes, *files, *arguments]
        monkeypatch.setattr("sys.argv", list(map(str, command)))
        script.main()
        content: dict[str, Any] = json.loads(json_file.read_text())
        return content

    return call


def test_cross_domain(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ["--ratios", "0.6", "--scalings", "whitening"]
    found = run(cross_domain, *one, "--quantize", "none")["cross_domain"]
    rows = {row["settings"]["calibration"]: row for row in found["rows"]}
    assert list(rows) == ["notes", "lines", "generated", "all"]
    assert rows["all"]["calibration"] == ["notes", "lines"]
    assert [one["corpus"] for one in rows["all"]["corpora"]] == ["notes", "lines"]
    assert len({row["keys"][0] for row in rows.values()}) == 4
    assert (tmp_path / "cross_domain.svg").is_file()
    assert "generated" in capsys.readouterr().out

    def fail(*_: Any) -> None:
        raise AssertionError("a known point is computed again")

    monkeypatch.setattr(Workbench, "compute", fail)
    assert run(cross_domain, *one, "--quantize", "none")["cross_domain"] == found


def test_scaling(run: Run, tmp_path: Path) -> None:
    fewer = ["--ratios", "0.6", "--alphas", "0.5,1", "--counts", "1,3", "--seeds", "1,2"]
    found = run(scaling, *fewer)
    grid, samples = found["grid"], found["samples"]
    assert len(grid["rows"]) == 6 * 2
    assert len({key for row in grid["rows"] for key in row["keys"]}) == 4 * 2 + 2
    assert [len(row["keys"]) for row in samples["rows"]] == [2, 2]
    assert samples["rows"][0]["corpora"][0]["perplexity"]["count"] == 2
    assert {row["calibration"][0] for row in grid["rows"]} == {"notes"}
    for name in ("scaling-grid.svg", "scaling-samples.png"):
        assert (tmp_path / name).is_file()


@pytest.mark.slow
def test_scaling_with_searched_ranks(run: Run) -> None:
    fewer = ["--parts", "grid", "--ratios", "0.8", "--alphas", "1", "--search"]
    rows = run(scaling, *fewer)["grid"]["rows"]
    assert all(row["kept_ratio"]["mean"] <= 0.8 for row in rows)
    assert not any(row["failures"] for row in rows)


def test_a_part_that_is_none_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(scaling, "--parts", "grids")
    assert "grids" in capsys.readouterr().err
