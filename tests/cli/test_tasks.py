"""Tasks on the command line and in a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asvd_q.evaluation.tasks.builtin import continuation_questions
from asvd_q.evaluation.tasks.record import TaskMetric, TaskResult
from asvd_q.recipe.tasks import CONTINUATION
from asvd_q.report.run import RunRecord
from asvd_q.report.tasks import task_table
from tests.cli.runner import command, write_recipe
from tests.support import WREN

Capture = pytest.CaptureFixture[str]

_LIMIT = 3


def _result(value: float, **changed: object) -> TaskResult:
    fields: dict[str, object] = {
        "task": "quiz",
        "version": "1",
        "shots": 0,
        "samples": 8,
        "sha256": "0",
        "runtime": "none",
        "metrics": {
            "acc": TaskMetric(value=value, error=0.25),
            "perplexity": TaskMetric(value=7 * value),
        },
    }
    return TaskResult.model_validate(fields | changed)


def test_evaluate_a_task(capsys: Capture) -> None:
    arguments = ("evaluate", WREN, "--task", CONTINUATION, "--limit", _LIMIT)
    ended = command(capsys, *map(str, arguments))
    assert CONTINUATION in ended.out
    assert "acc_norm" in ended.out
    assert "perplexity" not in ended.out
    assert ended.err == f"task {CONTINUATION}: {4 * _LIMIT}/{4 * _LIMIT}\n"


def test_evaluate_a_task_and_a_corpus_as_json(capsys: Capture) -> None:
    arguments = ["evaluate", WREN, "--task", CONTINUATION, "--limit", _LIMIT, "--json"]
    arguments += ["--reference", WREN]
    arguments += ["--corpus", "python-docs", "--window", 32, "--windows", 1]
    content = json.loads(command(capsys, *map(str, arguments)).out)
    (quality,), (task,) = content["quality"], content["tasks"]
    assert quality["corpus"] == "python-docs"
    assert task["samples"] == task["limit"] == _LIMIT
    assert task["agreement"] == 1
    assert task["dense"]["metrics"] == task["metrics"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--limit", "3"), "--shots and --limit are for tasks: name one with --task"),
        (("--task", CONTINUATION, "--limit", "0"), "evaluate.tasks.0.limit is 0"),
        (("--task", "none.yaml"), "cannot read the task file none.yaml"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, capsys: Capture) -> None:
    assert message in command(capsys, "evaluate", WREN, *arguments).message


def test_a_task_that_is_not_there_ends_a_run_before_it_begins(
    tmp_path: Path, capsys: Capture
) -> None:
    recipe = write_recipe(tmp_path, evaluate={"tasks": [str(tmp_path / "none.yaml")]})
    assert "cannot read the task file" in command(capsys, "run", recipe).message
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_measures_dense_and_compressed(tmp_path: Path, capsys: Capture) -> None:
    tasks = [{"task": CONTINUATION, "limit": 20}]
    recipe = write_recipe(tmp_path, evaluate={"tasks": tasks}, export=[{"format": "onnx"}])
    ended = command(capsys, "run", recipe)
    assert "same answer" in ended.out
    assert f"task {CONTINUATION}, dense: 80/80" in ended.err
    record = RunRecord.read(tmp_path / "run")
    (dense,), (found,) = record.dense_tasks, record.tasks
    assert record.quality == ()
    assert dense.sha256 == found.sha256
    assert found.samples == 20
    assert dense.agreement is None
    assert found.agreement is not None
    assert 0.4 < found.agreement <= 1
    # The store and its artefact, by themselves, answer as the run says.
    for path in ("store", "artefacts/onnx"):
        arguments = ("--task", CONTINUATION, "--limit", "20", "--json")
        content = json.loads(command(capsys, "evaluate", tmp_path / "run" / path, *arguments).out)
        (alone,) = content["tasks"]
        assert alone["sha256"] == found.sha256
        near = 1 / 20 if path != "store" else 0
        assert alone["metrics"]["acc"]["value"] == pytest.approx(
            found.metrics["acc"].value, abs=near + 1e-9
        )


@pytest.mark.slow
def test_wren_is_far_above_chance(capsys: Capture) -> None:
    content = json.loads(command(capsys, "evaluate", WREN, "--task", CONTINUATION, "--json").out)
    (task,) = content["tasks"]
    assert task["samples"] == len(continuation_questions())
    for metric in task["metrics"].values():
        assert metric["value"] - 3 * metric["error"] > 0.25


def test_the_table_has_the_dense_model_beside_the_compressed_one() -> None:
    table = task_table([_result(0.5, agreement=0.75)], [_result(0.75)])
    assert table.columns[4:] == ("dense", "compressed", "change", "same answer")
    assert table.rows == (
        ("quiz", "0", "8", "acc", "0.7500 ± 0.2500", "0.5000 ± 0.2500", "-0.2500", "75.00%"),
        ("", "", "", "perplexity", "5.2500", "3.5000", "-1.7500", ""),
    )


def test_the_table_of_one_model_has_its_values() -> None:
    group = _result(0.5, task="both", metrics={}, parts=(_result(0.5), _result(0.25, task="two")))
    table = task_table([group, _result(1.0, shots=None)])
    assert table.columns == ("task", "shots", "samples", "metric", "value")
    assert [row[0] for row in table.rows] == ["quiz", "", "two", "", "quiz", ""]
    assert table.rows[-2][1] == "–"
