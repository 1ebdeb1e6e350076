"""`asvd-q study` as a user calls it, and the studies that are shipped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from asvd_q.study.load import load_study
from asvd_q.study.record import StudyRecord
from tests.cli.runner import command
from tests.study.given import PLOT, write_study

Capture = pytest.CaptureFixture[str]
_SHIPPED = sorted((Path(__file__).parents[2] / "recipes" / "studies").glob("*.yaml"))


def test_study(place: Path, tmp_path: Path, capsys: Capture) -> None:
    path = write_study(tmp_path, place=place, plot=PLOT)
    ended = command(capsys, "study", path)
    assert ended.code == 0, ended.err
    assert "study: 3 models" in ended.out
    assert "whitening" in ended.out
    assert ended.err.count("; kept 0.7") == 3
    assert {file.name for file in (tmp_path / "study").iterdir() if file.is_file()} == {
        *("points.json", "study.json", "study.md", "study.png", "study.svg"),
    }
    again = command(capsys, "study", path, "--json", "--only", "decompose.alpha=1")
    record = StudyRecord.model_validate(json.loads(again.out))
    assert len(record.points) == 2
    assert "2 of 2 models were known already" in again.err


def test_list_computes_nothing(tmp_path: Path, capsys: Capture) -> None:
    ended = command(capsys, "study", write_study(tmp_path), "--list")
    assert ended.out.splitlines()[0] == "decompose.scaling abs_mean, decompose.alpha 0.5"
    assert len(ended.out.splitlines()) == 4
    assert not (tmp_path / "study").exists()


def test_a_wrong_study_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    path = write_study(tmp_path, vari={})
    assert "did you mean 'vary'" in command(capsys, "study", path).message
    assert "absent.yaml" in command(capsys, "study", tmp_path / "absent.yaml").message
    path = write_study(tmp_path)
    assert "model" in command(capsys, "study", path).message


def test_listing_needs_no_torch() -> None:
    code = (
        "import sys; from asvd_q.cli import app; app(sys.argv[1:], standalone_mode=False);"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    listing = ["study", str(_SHIPPED[0]), "--list"]
    subprocess.run([sys.executable, "-c", code, *listing], check=True, stdout=subprocess.PIPE)


@pytest.mark.parametrize("path", _SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_are_valid(path: Path) -> None:
    study = load_study(path)
    assert study.section.plot is not None
    for point in study.points:
        assert Path(point.recipe.model.path, "config.json").is_file()


def test_shipped_studies_take_other_text(tmp_path: Path) -> None:
    text = str(tmp_path / "mine.{split}.txt")
    for path in _SHIPPED:
        options = [
            f"calibration.corpora={{mine: [{text!r}]}}"
            if "cross" in path.stem
            else f"calibration.corpora=[{text!r}]",
            f"evaluate.corpora=[{text!r}]",
        ]
        for point in load_study(path, options).points:
            assert point.recipe.calibration is not None
            assert point.recipe.evaluate is not None
            assert point.recipe.calibration.corpora[0].path.endswith("mine.train.txt")
            assert point.recipe.evaluate.corpora[0].path.endswith("mine.test.txt")


@pytest.mark.slow
@pytest.mark.parametrize("path", _SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_run(path: Path, tmp_path: Path, capsys: Capture) -> None:
    fewer = ["evaluate.windows=2", "evaluate.window=128", f"output={tmp_path}"]
    if "samples" in path.stem:
        fewer += ["calibration.samples=[1, 2]", "calibration.seed=[1, 2]"]
    else:
        fewer += ["calibration.samples=4"]
    only = ["decompose.alpha=0.5"] if "scaling" in path.stem else []
    only += ["search.kept_ratio=0.8"] if "search" in path.stem else []
    options = [part for text in fewer for part in ("--set", text)]
    options += [part for text in only for part in ("--only", text)]
    ended = command(capsys, "study", path, *options)
    assert ended.code == 0, ended.err
    record = StudyRecord.model_validate_json((tmp_path / "study.json").read_bytes())
    assert all(point.failure is None for point in record.points)
    assert (tmp_path / "study.svg").is_file()
