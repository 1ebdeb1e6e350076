"""Where tasks come from, and what is said of those that cannot be had."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from asvd_q.errors import MissingExtraError, TaskError
from asvd_q.evaluation.tasks import loading
from asvd_q.evaluation.tasks.builtin import continuation_questions
from asvd_q.evaluation.tasks.loading import load_tasks
from asvd_q.recipe import TaskSection
from asvd_q.recipe.tasks import CONTINUATION
from tests.evaluation.tasks.given import QUESTIONS, write_task


def _message(task: str, **settings: int) -> str:
    with pytest.raises(TaskError) as caught:
        load_tasks([TaskSection(task=task, **settings)])
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_questions_are_the_same_every_time_and_have_one_right_option() -> None:
    questions = continuation_questions()
    assert questions == continuation_questions()
    assert len(questions) > 100
    assert len({question.context for question in questions}) > 0.95 * len(questions)
    for question in questions:
        assert len(set(question.choices)) == 4
        assert {len(choice.split()) for choice in question.choices} == {8}
        assert 0 <= question.answer < 4
    places = [question.answer for question in questions]
    assert all(places.count(place) > 0.15 * len(places) for place in range(4))


def test_the_right_option_follows_its_context_in_the_documentation() -> None:
    from asvd_q.statistics.builtin import python_docs

    text = " ".join(" ".join(topic.split()) for topic in python_docs("test"))
    for question in continuation_questions():
        assert f"{question.context} {question.choices[question.answer]}" in text


def test_without_documentation_there_is_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asvd_q.evaluation.tasks.builtin.python_docs", lambda split: [])
    assert "this Python lacks" in _message(CONTINUATION)


def test_the_built_in_task_has_its_questions() -> None:
    (loaded,) = load_tasks([TaskSection(task=CONTINUATION)])
    assert loaded.group is None
    (task,) = loaded.content["tasks"].values()
    questions = continuation_questions()
    assert len(task.eval_docs) == len(questions)
    document = task.eval_docs[3]
    assert task.doc_to_text(document) == questions[3].context
    assert task.doc_to_choice(document) == list(questions[3].choices)
    assert task.doc_to_target(document) == questions[3].answer


def test_data_files_are_looked_for_beside_the_task_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_task(tmp_path / "tasks")
    monkeypatch.chdir(tmp_path)
    (loaded,) = load_tasks([TaskSection(task=str(path))])
    assert len(loaded.content["tasks"]["multiple_choice"].eval_docs) == len(QUESTIONS)


def test_a_file_of_a_group_brings_the_tasks_beside_it(tmp_path: Path) -> None:
    write_task(tmp_path, dataset_kwargs={"data_files": {"test": str(tmp_path / "data.jsonl")}})
    path = tmp_path / "both.yaml"
    metrics = [{"metric": "acc", "weight_by_size": True}]
    fields = {"group": "both", "task": ["multiple_choice"], "aggregate_metric_list": metrics}
    path.write_text(yaml.safe_dump(fields))
    (loaded,) = load_tasks([TaskSection(task=str(path))])
    assert loaded.group == "both"
    assert list(loaded.content["tasks"]) == ["multiple_choice"]


def test_shots_are_set_where_the_task_takes_them(tmp_path: Path) -> None:
    path = str(write_task(tmp_path))
    for shots, expected in ((None, 0), (0, 0), (2, 2)):
        (loaded,) = load_tasks([TaskSection(task=path, shots=shots)])
        assert loaded.content["tasks"]["multiple_choice"].get_config("num_fewshot") == expected
    path = str(write_task(tmp_path, num_fewshot=0))
    assert "multiple_choice is for 0 shots: leave shots out" in _message(path, shots=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "no.yaml", "cannot read the task file .*no.yaml: No such file"),
        (lambda folder: _written(folder, "a: [1"), "the task file .*a.yaml cannot be read: "),
        (lambda folder: _written(folder, "- a"), "the task file .*a.yaml cannot be read: Expected"),
        (lambda folder: _written(folder, "{a: 1}"), "the task file .*a.yaml names no `task`"),
        (
            lambda folder: _written(folder, "{task: a, doc_to_text: !function no.such}"),
            "the task file .*a.yaml cannot be read: Cannot import module 'no'",
        ),
        (
            lambda folder: write_task(folder, dataset_kwargs={"data_files": "absent.jsonl"}),
            r"the task .*multiple_choice.yaml cannot be loaded: .*absent.jsonl",
        ),
        (
            lambda folder: write_task(folder, output_type="riddle"),
            "cannot be loaded: Got invalid output_type 'riddle'",
        ),
        (
            lambda folder: write_task(folder, unsafe_code=True),
            "the task multiple_choice runs code that the model writes",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_said(
    make: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    assert re.search(message, _message(str(make(tmp_path))))


def _written(folder: Path, text: str) -> Path:
    (folder / "a.yaml").write_text(text)
    return folder / "a.yaml"


def test_names_are_lm_evals(monkeypatch: pytest.MonkeyPatch) -> None:
    """With three of its files; reading all of them takes seconds."""
    files = [
        ("mmlu", "group: mmlu\ntask:\n  - mmlu_stem\n"),
        ("mmlu", '"tag": "mmlu_stem_tasks"\n"task": "mmlu_anatomy"\n'),
        ("piqa", "task: piqa\ndataset_path: baber/piqa\n"),
    ]
    known = tuple((Path("tasks") / folder, text) for folder, text in files)
    monkeypatch.setattr(loading, "_files", lambda: known)
    for name in ("mmlu", "mmlu_stem", "mmlu_stem_tasks", "mmlu_anatomy"):
        assert loading._homes(name) == [Path("tasks/mmlu")]
    assert loading._homes("mmlu_a") == []
    message = _message("mmlu_anatomi")
    assert message.startswith("there is no task 'mmlu_anatomi': did you mean 'mmlu_anatomy'?")
    assert CONTINUATION in message
    assert "did you mean" not in _message("zzz")


@pytest.mark.slow
def test_a_task_of_the_hub_says_that_there_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for name in ("piqa", "mmlu"):
        message = _message(name)
        assert message.startswith(f"the task {name} cannot be loaded: Couldn't reach ")
        assert "load it once where there is a network" in message


@pytest.mark.slow
def test_mmlu_is_the_group_without_shots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of the same form stands in for the hub's."""
    import datasets

    rows = [{"question": "q", "choices": ["a", "b", "c", "d"], "answer": 1}]
    data = datasets.DatasetDict(
        {split: datasets.Dataset.from_list(rows) for split in ("test", "dev", "validation")}
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: data)
    (loaded,) = load_tasks([TaskSection(task="mmlu")])
    assert loaded.group == "mmlu"
    assert len(loaded.content["tasks"]) == 57
    assert {task.get_config("num_fewshot") for task in loaded.content["tasks"].values()} == {0}


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"lm-eval is not installed.*asvd-q\[eval\]"):
        load_tasks([TaskSection(task=CONTINUATION)])
    assert load_tasks([]) == []
