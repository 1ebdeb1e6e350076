"""Calibration tokens of the benchmarks: text, and text that the model samples itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from asvd_q.models import SourceModel
from asvd_q.models.skeleton import build_skeleton
from asvd_q.statistics.generated import GeneratedText
from benchmarks.common import Bench, Options
from tests.support import WREN, tiny_llama

SAMPLES, WINDOW = 32, 24


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("common")
    tiny_llama(folder / "model", layers=1, hidden=32, intermediate=48, vocabulary=8192)
    for file in WREN.glob("tokenizer*"):
        shutil.copy(file, folder / "model")
    text = (WREN / "README.md").read_text(encoding="utf-8")
    (folder / "notes.train.txt").write_text(text, encoding="utf-8")
    return folder


def make_bench(place: Path, folder: Path | None = None) -> Bench:
    return Bench(Options(place / "model", place, ("notes",), (), WINDOW, None), folder=folder)


def test_generated_text_is_sampled_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SourceModel.open(str(place / "model"))
    text = GeneratedText(
        source, build_skeleton(source), seed=233, device="cpu", dtype=torch.float32
    )
    expected = text.windows(SAMPLES, WINDOW, None)  # wren's tokenizer puts no BOS
    assert torch.equal(make_bench(place, tmp_path).calibration(["generated"]), expected)
    monkeypatch.setattr(GeneratedText, "_sample", None)
    assert torch.equal(make_bench(place, tmp_path).calibration(["generated"]), expected)


def test_generated_text_is_a_corpus_among_others(place: Path) -> None:
    bench = make_bench(place)
    mixed = bench.calibration(["notes", "generated"])
    assert mixed.shape == (SAMPLES, WINDOW)
    half = SAMPLES // 2
    # One generator of offsets: the first half of the windows is as without the other corpus.
    assert torch.equal(mixed[:half], bench.calibration()[:half])
    assert not torch.equal(mixed[half:], bench.calibration()[half:])
