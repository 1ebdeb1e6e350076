"""The singular values that a run keeps beside its store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from asvd_q.compression.spectra import SPECTRA_FILE, SpectraFile, layer_spectrum, read_spectra
from asvd_q.models import SourceModel
from asvd_q.store import Store
from tests.compression.job import compress_to, hashes
from tests.support import tiny_llama

_FACTORS: dict[str, Any] = {"decompose": {"ranks": {"*": 9}, "scaling": "none"}, "windows": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return tiny_llama(folder, layers=3, hidden=32, intermediate=48, vocabulary=64)


def _file(folder: Path, names: list[str] | None = None, key: str = "key") -> SpectraFile:
    return SpectraFile(folder, key, names or [])


def _compress(folder: Path, model: Path, **options: Any) -> Store:
    folder.mkdir(exist_ok=True)
    return compress_to(folder / "store", model, spectra=folder, **options)


def test_values_are_those_of_the_weight(model: Path, tmp_path: Path) -> None:
    store = _compress(tmp_path, model, **_FACTORS)
    found = read_spectra(tmp_path, "key")
    assert list(found) == [record.name for record in store.records()]
    source = SourceModel.open(str(model))
    for name, spectrum in found.items():
        expected = torch.linalg.svdvals(source.tensor(f"{name}.weight").double())
        ranks = torch.tensor(spectrum.ranks) - 1
        assert spectrum.rank == 9
        assert spectrum.count == len(expected) == spectrum.ranks[-1]
        relative = (expected / expected[0])[ranks]
        assert torch.allclose(torch.tensor(spectrum.values).double(), relative, atol=2e-5)
        energy = expected.square()
        assert spectrum.kept == pytest.approx(float(energy[:9].sum() / energy.sum()), rel=1e-4)


def test_the_store_has_the_same_bytes_with_and_without(model: Path, tmp_path: Path) -> None:
    with_file = _compress(tmp_path / "with", model, **_FACTORS)
    without = compress_to(tmp_path / "without", model, **_FACTORS)
    assert hashes(with_file.folder) == hashes(without.folder)


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_run_ends_with_the_same_file(
    after: int, model: Path, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if done == after:
            raise StoppedError

    _compress(tmp_path / "whole", model, **_FACTORS)
    with pytest.raises(StoppedError):
        _compress(tmp_path / "run", model, progress=stop, **_FACTORS)
    blocks = {name.split(".")[2] for name in read_spectra(tmp_path / "run", "key")}
    assert len(blocks) == after
    _compress(tmp_path / "run", model, **_FACTORS)
    expected = (tmp_path / "whole" / SPECTRA_FILE).read_bytes()
    assert (tmp_path / "run" / SPECTRA_FILE).read_bytes() == expected


def test_a_run_killed_before_a_block_is_sealed_has_its_spectra_already(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_block", fail)
        with pytest.raises(KeyboardInterrupt):
            _compress(tmp_path, model, **_FACTORS)
    first = read_spectra(tmp_path, "key")
    assert {name.split(".")[2] for name in first} == {"0"}
    _compress(tmp_path, model, **_FACTORS)
    assert first.items() <= read_spectra(tmp_path, "key").items()


@pytest.mark.parametrize(
    ("method", "known"), [("after", True), ("alternate", True), ("inside", False)]
)
def test_corrections_keep_what_they_were_cut_from(
    method: str, known: bool, model: Path, tmp_path: Path
) -> None:
    _compress(
        tmp_path,
        model,
        quantize={"method": "rtn", "bits": 3, "group_size": 16},
        correct={"rank": 4, "method": method},
    )
    found = read_spectra(tmp_path, "key")
    assert bool(found) is known
    assert all(one.of == "residual" and one.rank == 4 for one in found.values())
    assert all(0 < one.kept < 1 for one in found.values())


def test_without_factors_there_is_no_file(model: Path, tmp_path: Path) -> None:
    _compress(tmp_path, model, quantize={"bits": 4, "group_size": 16}, windows=None)
    assert not (tmp_path / SPECTRA_FILE).exists()


def test_a_file_of_another_store_is_begun_again(tmp_path: Path) -> None:
    one = layer_spectrum(torch.tensor([2.0, 1.0]), 1)
    _file(tmp_path, ["a", "b"]).add({"a": one})
    assert read_spectra(tmp_path, "other") == {}
    _file(tmp_path, ["a", "b"], "other").add({"b": one})
    assert list(read_spectra(tmp_path, "other")) == ["b"]
    assert read_spectra(tmp_path, "key") == {}


def test_layers_lie_in_the_order_of_the_model_and_can_leave(tmp_path: Path) -> None:
    one = layer_spectrum(torch.tensor([2.0, 1.0]), 1)
    file = _file(tmp_path, ["a", "b"])
    file.add({"b": one})
    file.add({"a": one})
    assert list(read_spectra(tmp_path, "key")) == ["a", "b"]
    file.add({"b": None})
    assert list(read_spectra(tmp_path, "key")) == ["a"]


def test_a_damaged_file_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / SPECTRA_FILE).write_text('{"store_key": 3', encoding="utf-8")
    assert read_spectra(tmp_path, "key") == {}


@pytest.mark.parametrize("count", [1, 2, 100, 127, 128, 4096])
def test_few_points_however_many_values(count: int) -> None:
    rank = max(count // 3, 1)
    found = layer_spectrum(torch.arange(count, 0, -1), rank)
    assert len(found.ranks) <= 128
    assert list(found.ranks) == sorted(set(found.ranks))
    assert found.ranks[0] == 1
    assert found.ranks[-1] == count
    assert rank in found.ranks
    assert found.values[0] == 1.0
    index = found.ranks.index(rank)
    assert found.values[index] == pytest.approx((count - rank + 1) / count, rel=1e-4)


def test_a_rank_above_the_numerical_one() -> None:
    found = layer_spectrum(torch.tensor([3.0, 1.0, 0.0, 0.0]), 3)
    assert (found.numerical_rank, found.count, found.kept) == (2, 4, 1.0)
    assert found.ranks == (1, 2)


def test_a_matrix_of_zeros_has_nothing_to_show() -> None:
    found = layer_spectrum(torch.zeros(4), 2)
    assert (found.ranks, found.values, found.kept) == ((), (), 1.0)
