"""The tasks benchmark: files for data in a folder, and artefacts that answer as their store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from asvd_q.evaluation.tasks.loading import load_tasks
from asvd_q.recipe import TaskSection
from benchmarks import tasks
from benchmarks._data_tasks import write_data_tasks
from tests.support import WREN

_RECIPE = Path(__file__).parents[2] / "recipes/wren-asvd-gptq4.yaml"
_SMALL = ("calibration={corpora: [python-docs], samples: 4, window: 128, sequential: true}",)
_RANKS = ("search=null", "decompose.kept_ratio=0.8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One sample of each kind, two of MMLU's."""
    folder = tmp_path / "data"
    (folder / "mmlu").mkdir(parents=True)
    header = "question,A,B,C,D,answer\n"
    broken = 'one "two,a,b,c,d,e,1\n'
    subjects = {"abc": f"q1,a,b,c,d,0\n{broken}q3,a,b,c,d,3\n", "x_y": '"q2, so",a,b,c,d,2\n'}
    for subject, rows in subjects.items():
        (folder / f"mmlu/{subject}_test.csv").write_text(header + rows)
    query = {"query": "Question: Why?\n", "choices": ["No.", "So."], "gold": 1}
    (folder / "piqa.jsonl").write_text(json.dumps(query) + "\n")
    words = {"context": "He said", "continuation": "nothing"}
    (folder / "lambada_openai.jsonl").write_text(json.dumps(words) + "\n")
    return folder


def test_task_files_are_written_for_what_is_there(data: Path, tmp_path: Path) -> None:
    made = write_data_tasks(data, tmp_path)
    assert [path.name for path in made] == ["mmlu.yaml", "piqa.yaml", "lambada_openai.yaml"]
    loaded = load_tasks([TaskSection(task=str(path)) for path in made])
    mmlu, piqa, lambada = (next(iter(one.content["tasks"].values())) for one in loaded)
    prompts = [mmlu.doc_to_text(document) for document in mmlu.eval_docs]
    assert prompts[1] == (
        "The following are multiple choice questions (with answers) about x y.\n\n"
        "q2, so\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    )
    assert [mmlu.doc_to_target(document) for document in mmlu.eval_docs] == [0, 2, 3]
    (document,) = piqa.eval_docs
    assert piqa.doc_to_text(document) == "Question: Why?\nAnswer:"
    assert piqa.doc_to_choice(document) == ["No.", "So."]
    (document,) = lambada.eval_docs
    assert lambada.doc_to_target(document) == " nothing"
    assert yaml.safe_load(made[0].read_text())["task"] == "mmlu"


@pytest.mark.slow
def test_artefacts_answer_as_their_store(tmp_path: Path) -> None:
    """At level 0 in every sample; at level 4 in most of them."""
    made = tasks.compress(_RECIPE, None, tmp_path / "run", (*_SMALL, *_RANKS))
    loaded = load_tasks([TaskSection(task="python-docs-continuation")])
    rows = {row.model: row for row in tasks.measure(WREN, made, loaded)}
    assert list(rows) == ["dense", "store", *tasks.LEVELS]
    assert len({row.result.sha256 for row in rows.values()}) == 1
    samples = rows["dense"].result.samples
    exact, shipped = rows["level-0"], rows["level-4"]
    assert exact.same_as_store == samples
    assert exact.difference is not None
    assert exact.difference < 1e-3
    assert exact.result.metrics == rows["store"].result.metrics
    assert shipped.same_as_store is not None
    assert 0.9 * samples < shipped.same_as_store <= samples
    assert rows["store"].same_as_dense is not None
    assert rows["store"].same_as_dense > 0.6


@pytest.mark.slow
def test_the_whole(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tasks.json"
    argv = ["tasks", "--data-tasks", str(data), "--limit", "2", "--json", str(file)]
    for override in (*_SMALL, *_RANKS):
        argv += ["--set", override]
    monkeypatch.setattr("sys.argv", argv)
    tasks.main()
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 4 * 4
    assert {row["result"]["task"] for row in rows} == {
        "python-docs-continuation",
        "mmlu",
        "piqa",
        "lambada_openai",
    }
    assert all(row["result"]["samples"] <= 2 for row in rows)
