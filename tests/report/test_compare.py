"""Runs side by side, from records made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asvd_q.errors import ArtefactError, RecipeError
from asvd_q.report.compare import Comparison, compare, read_runs
from asvd_q.report.compare_plot import plot_comparison
from asvd_q.report.compare_tables import (
    comparison_content,
    comparison_markdown,
    comparison_tables,
)
from asvd_q.report.run import RunRecord
from tests.report.measured import artefact, quality, record, task

FIRST = record({"docs": 100.0, "code": 20.0}, [quality("docs", 110.0), quality("code", 21.0)])


def of(*records: RunRecord, recipes: list[dict[str, Any] | None] | None = None) -> Comparison:
    """The records under a, b, c."""
    given = recipes or [{} for _ in records]
    return compare(list(zip("abcdef", records, given, strict=False)))


def cells(comparison: Comparison, name: str) -> tuple[str, ...]:
    """The row of a quantity, without its name."""
    rows = [row for table in comparison_tables(comparison) for row in table.rows]
    (found,) = [row[1:] for row in rows if row[0] == name]
    return found


def test_equal_protocols_are_compared() -> None:
    other = record(
        {"docs": 100.0, "code": 20.0},
        [quality("docs", 105.0, kl=0.05, agreement=0.9), quality("code", 22.0)],
        total=50_000,
        warnings=("one", "two"),
    )
    found = of(FIRST, other)
    assert found.notes == ()
    assert cells(found, "docs (test) change") == ("+10.00%", "+5.00%")
    assert cells(found, "docs (test) KL") == ("–", "0.0500")
    assert cells(found, "docs (test) same arg max") == ("–", "90.00%")
    assert cells(found, "code (test) compressed") == ("21.000", "22.000")
    assert cells(found, "whole model") == ("58.59 KiB", "48.83 KiB")
    assert cells(found, "bits per weight") == ("4.000", "4.000")
    assert cells(found, "parameters kept") == ("0.7500", "0.7500")
    assert cells(found, "seconds") == ("3.8", "3.8")
    assert cells(found, "peak memory") == ("3.00 MiB", "3.00 MiB")
    assert cells(found, "warnings") == ("0", "2")
    assert cells(found, "model") == ("wren", "wren")


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (record({}, [quality("docs", 9.0)], hashes={"docs": "x"}), "another text under the same"),
        (record({}, [quality("docs", 9.0, windows=8)]), "8 windows of 64 tokens and not 4 windows"),
        (record({}, [quality("docs", 9.0, window=32)]), "4 windows of 32 tokens and not 4 windows"),
        (
            record({}, [quality("docs", 9.0, protocol="standard")]),
            "protocol standard and not windows",
        ),
        (record({}, [quality("docs", 9.0, tokens=256)]), "256 predicted tokens and not 252"),
        (record({}, [quality("docs", 9.0)], weights="b" * 64), "another model, which may cut"),
    ],
)
def test_other_protocols_are_marked_and_said_why(other: RunRecord, why: str) -> None:
    found = of(FIRST, other)
    assert cells(found, "docs (test) compressed") == ("110.000", "9.000 *")
    assert any(note.startswith("b: docs (test) is not comparable: ") for note in found.notes)
    assert any(why in note for note in found.notes)
    content = comparison_content(found)["runs"]
    assert [text["comparable"] for run in content for text in run["quality"]] == [True, True, False]
    assert any("* not comparable" in table.title for table in comparison_tables(found))


def test_a_split_of_another_name_is_another_text() -> None:
    found = of(FIRST, record({}, [quality("docs", 9.0, split="train")]))
    assert found.notes == ()
    assert cells(found, "docs (test) compressed") == ("110.000", "–")
    assert cells(found, "docs (train) compressed") == ("–", "9.000")


def test_the_first_run_that_has_a_text_is_the_measure() -> None:
    unmeasured = record()
    other = record({}, [quality("docs", 9.0, windows=8)])
    found = of(unmeasured, FIRST, other)
    assert cells(found, "docs (test) compressed") == ("–", "110.000", "9.000 *")


def test_other_models_are_marked() -> None:
    found = of(FIRST, record(weights="b" * 64))
    assert cells(found, "model") == ("wren", "wren *")
    assert found.notes == ("b: its model is wren with other weights than a's wren",)
    assert [run["same_model"] for run in comparison_content(found)["runs"]] == [True, False]


def test_artefacts_stand_in_rows_of_their_names() -> None:
    one = FIRST.with_artefact(artefact("onnx")).with_artefact(artefact("gptq", "gptq"))
    found = of(one, FIRST.with_artefact(artefact("onnx", bytes=2048)))
    assert cells(found, "artefact onnx") == ("4.88 KiB", "2.00 KiB")
    assert cells(found, "artefact gptq") == ("4.88 KiB", "–")


def test_tasks_are_compared_across_models() -> None:
    one = FIRST.model_copy(update={"tasks": (task(0.4),), "dense_tasks": (task(0.5),)})
    other = record(weights="b" * 64, tasks=(task(0.3),))
    found = of(FIRST, one, other)
    assert cells(found, "quiz acc compressed") == ("–", "0.4000 ± 0.1000", "0.3000 ± 0.1000")
    assert cells(found, "quiz acc dense") == ("–", "0.5000 ± 0.1000", "–")
    tasks = [text for run in comparison_content(found)["runs"] for text in run["tasks"]]
    assert [text["dense"] for text in tasks] == [0.5, None]
    assert [table.title for table in comparison_tables(found)] == ["Runs", "Quality", "Tasks"]
    assert not any("quiz" in note for note in found.notes)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"shots": 5, "sha256": "x"}, "5 shots and not 2"),
        ({"samples": 20, "sha256": "x"}, "20 samples and not 10"),
        ({"sha256": "x"}, "other questions under the same name"),
        ({"version": "2"}, "version 2 of the task and not 1"),
    ],
)
def test_tasks_of_another_protocol_are_marked(fields: dict[str, Any], why: str) -> None:
    found = of(record(tasks=(task(0.4),)), record(tasks=(task(0.3, **fields),)))
    assert cells(found, "quiz acc compressed") == ("0.4000 ± 0.1000", "0.3000 ± 0.1000 *")
    assert found.notes == (f"b: quiz is not comparable: {why}",)


def test_of_a_group_without_metrics_the_tasks_are_compared() -> None:
    group = task(0.0, task="all", metrics={}, parts=(task(0.4), task(0.6, task="other")))
    found = of(record(tasks=(group,)), record(tasks=(task(0.3),)))
    assert cells(found, "quiz acc compressed") == ("0.4000 ± 0.1000", "0.3000 ± 0.1000")
    assert cells(found, "other acc compressed") == ("0.6000 ± 0.1000", "–")


def test_only_what_differs_in_the_recipes() -> None:
    ranks = {f"model.layers.{index}.q_proj": 8 for index in range(9)}
    one = {
        "output": "a",
        "name": None,
        "model": {"path": "/a", "dtype": "auto"},
        "decompose": {"alpha": 0.5, "scaling": "rms", "ranks": ranks},
        "quantize": {"bits": 4},
        "correct": None,
    }
    other = {
        "output": "b",
        "name": "b",
        "model": {"path": "/b", "dtype": "auto"},
        "decompose": {"alpha": 0.4, "scaling": "rms", "ranks": ranks | {"lm_head": 8}},
        "quantize": None,
        "export": [],
    }
    found = of(FIRST, FIRST, recipes=[one, other])
    assert dict(found.differences) == {
        "decompose.alpha": (0.5, 0.4),
        "decompose.ranks": (ranks, ranks | {"lm_head": 8}),
        "quantize.bits": (4, None),
    }
    assert cells(found, "decompose.alpha") == ("0.5", "0.4")
    assert cells(found, "quantize.bits") == ("4", "–")
    first, second = cells(found, "decompose.ranks")
    assert first.startswith("9 entries, ")
    assert second.startswith("10 entries, ")
    assert first.split()[-1] != second.split()[-1]
    content = comparison_content(found)["recipe_differences"]
    assert content["decompose.alpha"] == {"a": 0.5, "b": 0.4}


def test_a_recipe_that_is_gone() -> None:
    found = of(FIRST, FIRST, FIRST, recipes=[None, {"seed": 0}, {"seed": 1}])
    assert dict(found.differences) == {"seed": (None, 0, 1)}
    assert found.notes == ("a: has no recipe.yaml any more, so its settings are not compared",)
    assert of(FIRST, FIRST, recipes=[None, {"seed": 0}]).differences == {}
    assert of(FIRST, FIRST, recipes=[None, None]).differences == {}


def test_markdown() -> None:
    text = comparison_markdown(of(FIRST, record(weights="b" * 64)))
    assert text.startswith(
        "## Runs\n\n|  | a | b |\n| --- | --- | --- |\n| model | wren | wren * |\n"
    )
    assert "\n\n- b: its model is wren with other weights" in text


def test_labels(tmp_path: Path) -> None:
    for name in ("one/run", "two/run", "three", "a=b"):
        (tmp_path / name).mkdir(parents=True)
        FIRST.write(tmp_path / name)

    def labels(*arguments: str) -> list[str]:
        return [label for label, _, _ in read_runs(arguments)]

    one, two, three = (str(tmp_path / name) for name in ("one/run", "two/run", "three"))
    assert labels(one, three) == ["run", "three"]
    assert labels(one, two) == [one, two]
    assert labels(one, f"new={two}") == ["run", "new"]
    assert labels(three, str(tmp_path / "a=b")) == ["three", "a=b"]
    for arguments, words in (
        ((one,), "two run folders or more"),
        ((one, one), "two runs are called"),
        ((f"x={one}", f"x={two}"), "two runs are called 'x'"),
        ((one, f"={two}"), "is not NAME=PATH"),
    ):
        with pytest.raises(RecipeError, match=words):
            labels(*arguments)
    with pytest.raises(ArtefactError, match="is not a finished run"):
        labels(one, str(tmp_path))


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_plot_has_a_panel_for_every_text(tmp_path: Path, kind: str) -> None:
    other = record({"docs": 100.0}, [quality("docs", 105.0)], total=50_000)
    elsewhere = record({"code": 30.0}, [quality("code", 31.0, windows=8)])
    found = of(FIRST, other, elsewhere)
    paths = [tmp_path / f"{name}.{kind}" for name in ("first", "second")]
    for path in paths:
        plot_comparison(found, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(list(tmp_path.iterdir())) == 2
    if kind == "svg":
        text = paths[0].read_text(encoding="utf-8")
        assert text.count("<!-- a -->") == 2
        assert text.count("<!-- b -->") == 1
        assert "<!-- c -->" not in text  # not comparable
        assert "<!-- docs (test) -->" in text


def test_a_plot_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"evaluate\.dense"):
        plot_comparison(
            of(FIRST.model_copy(update={"dense_quality": ()}), record()), tmp_path / "x.svg"
        )
    with pytest.raises(RecipeError, match=r"\.svg or \.png"):
        plot_comparison(of(FIRST, FIRST), tmp_path / "x.pdf")
    assert not list(tmp_path.iterdir())
