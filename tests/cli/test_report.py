"""The report as a user comes by it: at the end of a run, again, and after another export."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.runner import command, write_recipe

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of wren: factors in floats, nothing evaluated, nothing exported."""
    from asvd_q.pipeline import run
    from asvd_q.progress import silent
    from asvd_q.recipe import load_recipe

    folder = tmp_path_factory.mktemp("report")
    sections = {"calibration": None, "decompose": {"kept_ratio": 0.7, "scaling": "none"}}
    run(load_recipe(write_recipe(folder, **sections)), silent)
    return folder / "run"


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_ends_with_the_path_of_its_report(tmp_path: Path, capsys: Capture) -> None:
    recipe = write_recipe(tmp_path, calibration=None, decompose=None)
    ended = command(capsys, "run", recipe)
    assert ended.code == 0
    assert ended.out.splitlines()[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    assert (tmp_path / "run" / "report.html").is_file()


def test_report_makes_both_files_again(run_folder: Path, capsys: Capture) -> None:
    files = [run_folder / "report.html", run_folder / "report.md"]
    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    ended = command(capsys, "report", run_folder)
    assert ended.out.splitlines() == [str(path) for path in files]
    assert [path.read_bytes() for path in files] == before


def test_the_page_of_a_real_run_has_all_layers_and_spectra(run_folder: Path) -> None:
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    for block in range(6):
        for kind in ("self_attn.q_proj", "mlp.down_proj"):
            assert page.count(f"model.layers.{block}.{kind}") >= 2  # its row, and its line
    assert page.count("Singular values of ") == 7


def test_another_export_refreshes_the_report(run_folder: Path, capsys: Capture) -> None:
    assert "artefacts/transformers" not in (run_folder / "report.md").read_text(encoding="utf-8")
    command(capsys, "export", run_folder, "--to", "transformers")
    for name in ("report.html", "report.md"):
        assert "artefacts/transformers" in (run_folder / name).read_text(encoding="utf-8")


def test_starting_afresh_takes_the_old_report_away(finished: Path, tmp_path: Path) -> None:
    from asvd_q.pipeline import _claim

    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    _claim(folder, fresh=True)
    assert list(folder.iterdir()) == []


def test_what_is_no_run_is_named(tmp_path: Path, capsys: Capture) -> None:
    assert "is not a finished run" in command(capsys, "report", tmp_path).message
