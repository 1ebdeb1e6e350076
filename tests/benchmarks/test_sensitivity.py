"""The sensitivity benchmark as a whole, on a small random model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from asvd_q.models import SourceModel
from asvd_q.models.refs import WeightRef
from asvd_q.models.skeleton import build_skeleton
from asvd_q.recipe import DecomposeSection
from benchmarks import sensitivity
from benchmarks._naive import published_ranks
from benchmarks._sweeps import Sweep, measure, measure_alone
from benchmarks._trial import evenly_spaced
from tests.support import WREN, tiny_llama

KINDS = ("q", "k", "up", "down")


def layers(blocks: int) -> list[WeightRef]:
    return [
        WeightRef(f"layers.{block}.{kind}", f"layers.{block}.{kind}", (4, 4), block)
        for block in range(blocks)
        for kind in KINDS
    ]


@pytest.mark.parametrize("count", range(1, 25))
def test_checked_layers_are_of_all_kinds_and_of_all_depths(count: int) -> None:
    weights = layers(6)
    chosen = evenly_spaced(weights, count)
    assert len(chosen) == count
    assert chosen == [weight for weight in weights if weight in chosen]
    counts = [sum(weight.kind == kind for weight in chosen) for kind in KINDS]
    assert max(counts) - min(counts) <= 1
    if count >= 8:
        blocks = {weight.block for weight in chosen}
        assert {0, 5} <= blocks
        assert len(blocks) >= 4


def test_no_more_layers_than_there_are() -> None:
    assert evenly_spaced(layers(2), 100) == layers(2)


def test_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_llama(tmp_path / "model", layers=1, hidden=32, intermediate=48, vocabulary=8192)
    for file in WREN.glob("tokenizer*"):
        shutil.copy(file, model)
    (tmp_path / "notes.train.txt").write_text((WREN / "README.md").read_text(encoding="utf-8") * 9)
    # Processes of their own take seconds each to start.
    monkeypatch.setattr("benchmarks._trial.measure_alone", measure)
    arguments = ["--model", model, "--data", tmp_path, "--calibration", "notes", "--window", 24]
    own = ["--samples", 3, "--check-layers", 3, "--exact-repeats", 1, "--fast-repeats", 2]
    json_file = tmp_path / "numbers" / "sensitivity.json"
    command = ["sensitivity", *arguments, *own, "--json", json_file]
    monkeypatch.setattr("sys.argv", list(map(str, command)))
    sensitivity.main()
    printed = capsys.readouterr().out
    found = json.loads(json_file.read_text())
    assert "published procedure" in printed
    assert f"{found['fast_spearman']:.4f}" in printed
    assert found["exact_max_relative_difference"] < 1e-5
    assert found["difference"]["candidates"] == 3 * 6
    assert found["exact_speedup"] == found["published_seconds"] / found["exact_seconds"]
    assert found["fast_speedup"] == found["published_seconds"] / found["fast_seconds"]
    for key in ("fast_spearman", "fast_spearman_corpus"):
        assert -1 <= found[key] <= 1
    for key in ("exact_forwards_per_candidate", "fast_forward_equivalents"):
        assert found[key] > 0
    assert found["peak_memory_bytes"] > found["exact_added_memory_bytes"]
    assert found["fast_peak_memory_bytes"] > found["fast_added_memory_bytes"]
    assert len(found["losses"]) == found["candidates"] == 7 * 6
    assert (found["settings"]["samples"], found["settings"]["window"]) == (3, 24)
    assert found["settings"]["labels"] == "sampled"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exact", "fast"])
def test_a_process_of_its_own_finds_the_same(kind: str, tmp_path: Path) -> None:
    model = tiny_llama(tmp_path, hidden=32, intermediate=48, vocabulary=64)
    weights = build_skeleton(SourceModel.open(str(model))).weights
    sweep = Sweep(
        model=model,
        windows=np.random.default_rng(0).integers(64, size=(3, 12)),
        ranks=published_ranks([weight for weight in weights if weight.block is not None]),
        section=DecomposeSection(),
        sensitivity="exact" if kind == "exact" else "fast",
    )
    here, there = measure(sweep), measure_alone(sweep)
    for name, losses in here.losses.items():
        assert there.losses[name] == pytest.approx(losses, rel=1e-3, abs=1e-6)
    assert there.added_memory_bytes < there.peak_memory_bytes
