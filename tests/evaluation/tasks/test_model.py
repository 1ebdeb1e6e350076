"""A Runner gives lm-eval what lm-eval's own model of transformers gives it, request by request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asvd_q.errors import TaskError
from asvd_q.evaluation.runners import model_runner
from asvd_q.evaluation.tasks.builtin import continuation_questions
from asvd_q.evaluation.tasks.loading import LoadedTask, load_tasks
from asvd_q.evaluation.tasks.silence import Silence
from asvd_q.recipe import TaskSection
from asvd_q.recipe.tasks import CONTINUATION
from tests.evaluation.tasks.given import CONTEXT, QUESTIONS, wren, write_task
from tests.support import WREN


@pytest.fixture(scope="module")
def theirs() -> Any:
    """lm-eval's own model."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(WREN, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(WREN)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=CONTEXT)


@pytest.fixture(scope="module")
def ours() -> Any:
    from asvd_q.evaluation.tasks.model import RunnerLM

    source = wren()
    return RunnerLM(model_runner(source), source.tokenizer, context=CONTEXT, batch_size=3)


def _results(task: LoadedTask, model: Any) -> Any:
    from lm_eval.evaluator import evaluate

    task.reset()
    with Silence().kept():
        return evaluate(model, task.content, bootstrap_iters=10, log_samples=True)


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("kind", ["multiple_choice", "loglikelihood"])
def test_likelihoods_and_accuracy_are_lm_evals(
    kind: str, shots: int, ours: Any, theirs: Any, tmp_path: Path
) -> None:
    (task,) = load_tasks([TaskSection(task=str(write_task(tmp_path, kind)), shots=shots)])
    assert _compared(task, kind, ours, theirs) == len(QUESTIONS)


@pytest.mark.slow
def test_the_built_in_task_is_lm_evals_for_lm_evals_model(ours: Any, theirs: Any) -> None:
    (task,) = load_tasks([TaskSection(task=CONTINUATION)])
    assert _compared(task, CONTINUATION, ours, theirs) == len(continuation_questions())


def _compared(task: LoadedTask, kind: str, ours: Any, theirs: Any) -> int:
    """Compare everything of a task; returns the number of samples."""
    found, expected = _results(task, ours), _results(task, theirs)
    for metric in ("acc,none", "acc_norm,none", "acc_stderr,none"):
        if metric in expected["results"][kind]:
            assert found["results"][kind][metric] == expected["results"][kind][metric]
    pairs = list(zip(found["samples"][kind], expected["samples"][kind], strict=True))
    for mine, other in pairs:
        assert mine["arguments"] == other["arguments"]
        for (score, greedy), (reference, expected_greedy) in zip(
            mine["filtered_resps"], other["filtered_resps"], strict=True
        ):
            assert score == pytest.approx(reference, abs=1e-4)
            assert greedy == expected_greedy
    return len(pairs)


def test_rolling_likelihoods_are_lm_evals(ours: Any, theirs: Any, tmp_path: Path) -> None:
    kind = "loglikelihood_rolling"
    (task,) = load_tasks([TaskSection(task=str(write_task(tmp_path, kind)))])
    found, expected = (_results(task, model)["samples"][kind] for model in (ours, theirs))
    for mine, other in zip(found, expected, strict=True):
        assert mine["filtered_resps"] == pytest.approx(other["filtered_resps"], abs=1e-4)


def test_generated_text_is_lm_evals(ours: Any, theirs: Any, tmp_path: Path) -> None:
    kind = "generate_until"
    (task,) = load_tasks([TaskSection(task=str(write_task(tmp_path, kind)))])
    found, expected = (_results(task, model)["samples"][kind] for model in (ours, theirs))
    texts, others = ([sample["filtered_resps"][0] for sample in one] for one in (found, expected))
    # Of an empty context theirs makes padding that nothing attends to; ours is the BOS token.
    assert QUESTIONS[1]["text"] == ""
    del texts[1], others[1]
    assert texts == others
    assert len(set(texts)) > 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True, "temperature": 0.5, "top_p": 0.9}, "samples with top_p"),
        ({"max_gen_toks": 64}, "wants 64 new tokens and the model takes 64"),
    ],
)
def test_what_no_runner_follows_is_said(settings: dict[str, Any], message: str, ours: Any) -> None:
    from lm_eval.api.instance import Instance

    request = Instance("generate_until", {}, ("A", settings), 0)
    with pytest.raises(TaskError, match=message):
        ours.generate_until([request])


def test_an_empty_answer_is_said(ours: Any) -> None:
    from lm_eval.api.instance import Instance

    with pytest.raises(TaskError, match="an answer is empty"):
        ours.loglikelihood([Instance("loglikelihood", {}, ("A", ""), 0)])


def test_an_answer_that_is_part_of_a_word_before_it_is_said(ours: Any) -> None:
    from lm_eval.api.instance import Instance

    request = Instance("loglikelihood", {}, ("Raised when an in", "dex"), 0)
    with pytest.raises(TaskError, match="an answer has no tokens of its own"):
        ours.loglikelihood([request])


def test_the_bos_token_is_there_once(ours: Any) -> None:
    plain = ours.tok_encode("Return")
    assert ours.tok_encode("<s>Return") == [ours.prefix_token_id, *plain]
