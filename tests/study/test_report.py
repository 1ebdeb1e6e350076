"""The table, the page and the plots of a study, from numbers made up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from asvd_q.evaluation.quality import Quality
from asvd_q.study.record import PointRecord, Spread, StudyRecord, rows_of
from asvd_q.study.results import PointResult
from asvd_q.study.schema import LinesPlot, MatrixPlot
from asvd_q.study.tables import dense_table, study_page, study_table
from asvd_q.study.write import write_study

_CORPORA = ("news", "code")
_LINES = LinesPlot(kind="lines", x="alpha", series="scaling")
_MATRIX = MatrixPlot(kind="matrix", rows="corpora", panel=("scaling",))


def quality(corpus: str, perplexity: float, kl: float | None = 0.1) -> Quality:
    return Quality(
        corpus=corpus,
        split="test",
        window=16,
        windows=4,
        tokens=60,
        perplexity=perplexity,
        kl=kl,
        agreement=None if kl is None else 0.75,
        runtime="torch",
    )


def point(
    settings: dict[str, str],
    key: str,
    perplexity: float | None,
    *,
    repeat: dict[str, str] | None = None,
    calibration: tuple[str, ...] = ("news",),
    kl: float | None = 0.1,
) -> PointRecord:
    result = None
    if perplexity is not None:
        result = PointResult(
            kept_ratio=0.8,
            layer_bytes=1024,
            total_bytes=2048,
            quality=tuple(quality(corpus, perplexity, kl) for corpus in _CORPORA),
            seconds=1.0,
        )
    return PointRecord(
        settings=settings,
        repeat=repeat or {},
        key=key,
        calibration=calibration,
        dense=tuple(quality(corpus, 10.0, None) for corpus in _CORPORA),
        result=result,
        failure="a number is not finite" if result is None else None,
    )


def study(*points: PointRecord) -> StudyRecord:
    return StudyRecord(
        name="Scalings",
        model=("wren",),
        versions={"asvd-q": "0"},
        varied=tuple(points[0].settings),
        repeated=tuple(points[0].repeat),
        points=points,
        rows=rows_of(points),
    )


def scalings() -> StudyRecord:
    return study(
        point({"scaling": "rms", "alpha": "0.5"}, "a", 12),
        point({"scaling": "rms", "alpha": "2"}, "b", None),
        point({"scaling": "whitening", "alpha": "0.5"}, "c", 11),
        point({"scaling": "whitening", "alpha": "2"}, "c", 11),
    )


def test_the_table_has_a_row_for_every_model() -> None:
    table = study_table(scalings())
    assert table.title == "Scalings: 3 models"
    assert table.columns[:6] == ("scaling", "alpha", "kept", "bytes", "news", "news: change")
    rms, failed, whitening = table.rows
    assert rms[:8] == (
        *("rms", "0.5", "0.8000", "2.00 KiB"),
        *("12.000", "+20.00%", "0.1000", "75.00%"),
    )
    assert failed[:5] == ("rms", "2", "–", "–", "failed")
    assert whitening[:2] == ("whitening", "–")


def test_a_setting_that_makes_no_difference_between_some_values_has_them_all() -> None:
    record = study(*(point({"text": name}, "b" if name == "c" else name, 11) for name in "abc"))
    assert [row[0] for row in study_table(record).rows] == ["a", "b / c"]


def test_distances_that_were_not_measured_have_no_column() -> None:
    record = study(point({"alpha": "1"}, "a", 12, kl=None))
    assert study_table(record).columns == (
        *("alpha", "kept", "bytes"),
        *("news", "news: change", "code", "code: change"),
    )


def test_repetitions_are_one_row_with_a_spread() -> None:
    record = study(
        point({"alpha": "1"}, "a", 11, repeat={"seed": "1"}),
        point({"alpha": "1"}, "b", 13, repeat={"seed": "2"}),
        point({"alpha": "1"}, "c", None, repeat={"seed": "3"}),
    )
    [row] = study_table(record).rows
    assert row[3:5] == ("12.000 ± 1.414", "+20.00% ± 14.14%")
    page = study_page(record, [])
    assert "- alpha 1, seed 3: a number is not finite" in page
    assert "sample standard deviation" in page


def test_the_page_has_tables_and_plot() -> None:
    page = study_page(scalings(), [Path("somewhere/study.svg"), Path("somewhere/study.png")])
    assert "| whitening | – |" in page
    assert "![Scalings](study.svg)" in page
    assert "study.png" not in page
    assert [row[2] for row in dense_table(scalings()).rows] == ["10.000", "10.000"]


def test_an_infinite_perplexity_is_kept(tmp_path: Path) -> None:
    record = study(point({"alpha": "1"}, "a", math.inf), point({"alpha": "2"}, "b", 12))
    write_study(record, tmp_path, LinesPlot(kind="lines", x="alpha"))
    found = StudyRecord.model_validate_json((tmp_path / "study.json").read_bytes())
    assert found == record
    assert found.rows[0].corpora[0].perplexity == Spread(
        mean=math.inf, deviation=None, low=math.inf, high=math.inf, count=1
    )


def drawn(record: StudyRecord, plot: Any, folder: Path) -> str:
    write_study(record, folder, plot)
    assert (folder / "study.png").stat().st_size > 1000
    return (folder / "study.svg").read_text(encoding="utf-8")


def test_lines(tmp_path: Path) -> None:
    image = drawn(scalings(), _LINES, tmp_path)
    for text in ("Scalings", "news", "code", "rms", "whitening", "alpha"):
        assert f"<!-- {text} -->" in image
    assert drawn(scalings(), _LINES, tmp_path) == image


@pytest.mark.parametrize("metric", ["change", "perplexity", "kl", "agreement"])
def test_a_matrix_marks_what_was_calibrated_on(metric: Any, tmp_path: Path) -> None:
    rows = {"news": ("news",), "both": ("news", "code"), "own": ("generated",)}
    record = study(
        *(
            point({"corpora": name, "scaling": "rms"}, name, 11, calibration=calibration)
            for name, calibration in rows.items()
        ),
        point({"corpora": "bad", "scaling": "rms"}, "bad", None, calibration=("code",)),
    )
    image = drawn(record, _MATRIX.model_copy(update={"metric": metric}), tmp_path)
    for text in ("scaling rms", "both", "own", "failed", "–"):
        assert f"<!-- {text} -->" in image or text == "–"
    # One frame for what was calibrated on alone, dotted ones where it was among others.
    frames = image.count("stroke: #d1622b")
    assert frames == 1 + 2 + 1
    assert image.count("stroke-dasharray") == 2
