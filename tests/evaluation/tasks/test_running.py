"""Results of tasks, and the answers of two models beside each other."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest
import yaml

from asvd_q.artefact import Runner
from asvd_q.errors import TaskError
from asvd_q.evaluation.runners import model_runner
from asvd_q.evaluation.tasks.loading import load_tasks
from asvd_q.evaluation.tasks.record import Item, TaskOutcome, agreement
from asvd_q.evaluation.tasks.running import compare_tasks, evaluate_tasks
from asvd_q.evaluation.tasks.silence import Silence
from asvd_q.recipe import TaskSection
from tests.evaluation.tasks.given import CONTEXT, wren, write_task


@pytest.fixture(scope="module")
def runner() -> Runner:
    return model_runner(wren())


def _put(runner: Runner, path: Path, **settings: int) -> TaskOutcome:
    (outcome,) = evaluate_tasks(
        load_tasks([TaskSection(task=str(path), **settings)]),
        runner,
        wren().tokenizer,
        context=CONTEXT,
        batch_size=4,
    )
    return outcome


def test_accuracy_is_the_share_of_likeliest_options_that_are_right(
    runner: Runner, tmp_path: Path
) -> None:
    outcome = _put(runner, write_task(tmp_path))
    result = outcome.result
    right = [0, 1, 0, 1, 0, 2]
    answers = [item.answer for item in outcome.items]
    assert answers == [
        item.loglikelihoods.index(max(item.loglikelihoods)) for item in outcome.items
    ]
    hits = sum(one == other for one, other in zip(answers, right, strict=True))
    assert result.metrics["acc"].value == pytest.approx(hits / 6)
    assert result.metrics["acc"].error == pytest.approx((hits / 6 * (1 - hits / 6) / 5) ** 0.5)
    assert result.metrics["acc"].higher_is_better
    assert (result.task, result.shots, result.samples) == ("multiple_choice", 0, 6)
    assert result.runtime.startswith("torch ")
    assert result.agreement is None


def test_the_hash_is_of_what_is_asked(runner: Runner, tmp_path: Path) -> None:
    path = write_task(tmp_path)
    first = _put(runner, path).result
    assert _put(runner, path).result.sha256 == first.sha256
    # Examples are chosen by chance, and the same ones every time.
    shots = [_put(runner, path, shots=1).result for _ in range(2)]
    assert shots[0] == shots[1]
    few = _put(runner, path, limit=3).result
    assert len({first.sha256, shots[0].sha256, few.sha256}) == 3
    assert (few.limit, few.samples) == (3, 3)


@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling", "generate_until"])
def test_every_kind_of_task_has_its_metrics_and_answers(
    kind: str, runner: Runner, tmp_path: Path
) -> None:
    outcome = _put(runner, write_task(tmp_path, kind), limit=4)
    metrics = outcome.result.metrics
    answers = {type(item.answer) for item in outcome.items}
    if kind == "loglikelihood":
        assert set(metrics) == {"perplexity", "acc"}
        assert metrics["perplexity"].error is not None  # resampled
        assert not metrics["perplexity"].higher_is_better
        assert answers == {bool}
    elif kind == "generate_until":
        assert set(metrics) == {"exact_match"}
        assert answers == {str}
    else:
        assert metrics["word_perplexity"].value > 1
        assert answers == {type(None)}
        assert agreement(outcome.items, outcome.items) is None


def test_a_group_has_its_tasks_as_parts(runner: Runner, tmp_path: Path) -> None:
    data = {"test": str(tmp_path / "data.jsonl")}
    for name in ("one", "two"):
        written = write_task(tmp_path, task=name, dataset_kwargs={"data_files": data})
        written.rename(tmp_path / f"{name}.yaml")
    fields = {
        "group": "both",
        "task": ["one", "two"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(fields))
    outcome = _put(runner, tmp_path / "both.yaml", limit=4)
    result = outcome.result
    assert result.task == "both"
    assert [part.task for part in result.parts] == ["one", "two"]
    assert result.samples == sum(part.samples for part in result.parts) == 8
    assert result.metrics["acc"].value == result.parts[0].metrics["acc"].value
    (beside,) = compare_tasks([outcome], [outcome]).results
    assert beside.agreement == 1
    assert [part.agreement for part in beside.parts] == [1, 1]
    (alone,) = compare_tasks([], [outcome]).results
    assert alone.agreement is None


def test_agreement_is_the_share_of_equal_answers() -> None:
    first = tuple(Item("t", number, answer) for number, answer in enumerate([0, 1, 2, 3]))
    second = tuple(Item("t", number, answer) for number, answer in enumerate([0, 1, 3, 3]))
    assert agreement(first, second) == 0.75


def test_what_a_task_gets_wrong_is_said_in_one_line(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("def broken(doc, results):\n    raise ValueError('a\\nb')\n")
    path = write_task(tmp_path)
    path.write_text(path.read_text() + "process_results: !function code.broken\n")
    with pytest.raises(TaskError, match=r"multiple_choice.yaml cannot be put to the model: a$"):
        _put(runner, path, limit=1)


def test_lm_eval_is_silent_and_what_it_calls_of_ours_is_not(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    silence, logger = Silence(), logging.getLogger("asvd_q.silence")
    with silence.kept():
        print("kept")
        logger.error("kept")
        assert os.environ["DISABLE_MULTIPROC"] == "1"
        with silence.lifted():
            print("lifted", file=sys.stderr)
            logger.error("lifted")
        print("kept", file=sys.stderr)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "lifted\n")
    assert caplog.messages == ["lifted"]
    assert "DISABLE_MULTIPROC" not in os.environ


def test_a_task_writes_nothing_to_the_terminal(
    runner: Runner, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _put(runner, write_task(tmp_path, "loglikelihood"), shots=1, limit=2)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
