"""The standard protocol gives the perplexity that GPTQ's evaluation gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asvd_q.evaluation.quality import evaluate_quality
from asvd_q.evaluation.runners import model_runner
from asvd_q.evaluation.texts import evaluation_texts, prompt_tokens
from asvd_q.models import SourceModel
from asvd_q.recipe import EvaluateSection
from asvd_q.recipe.named import NAMED
from asvd_q.statistics.corpora import load_corpus
from tests.support import WREN


def section(source: str, **fields: object) -> EvaluateSection:
    return EvaluateSection.model_validate({"corpus": source, "protocol": "standard", **fields})


def by_plain_transformers(text: str, length: int) -> float:
    """Each window's mean loss times its length, summed, by the length of all windows.

    Every window has as many predictions, so it is the mean over all of them.
    """
    tokenizer = AutoTokenizer.from_pretrained(WREN)
    model = AutoModelForCausalLM.from_pretrained(WREN, dtype=torch.float32).eval()
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    count = ids.numel() // length
    total = 0.0
    with torch.no_grad():
        for index in range(count):
            window = ids[:, index * length : (index + 1) * length]
            shifted = model(window).logits[:, :-1].flatten(0, 1)
            total += float(torch.nn.functional.cross_entropy(shifted, window[0, 1:])) * length
    return float(torch.tensor(total / (count * length)).exp())


def test_perplexity_is_that_of_gptqs_evaluation(tmp_path: Path) -> None:
    prose = load_corpus(section("python-docs").corpora[0]).text[:12_000]
    path = tmp_path / "prose.txt"
    path.write_text(prose, encoding="utf-8")
    source = SourceModel.open(str(WREN))
    (text,) = evaluation_texts(section(str(path)), source.tokenizer, context=256)
    assert len(text.tokens) > 5
    found = evaluate_quality(model_runner(source, stream=False), text, batch_size=4)
    assert found.perplexity == pytest.approx(by_plain_transformers(prose, 256), rel=1e-5)
    assert (found.protocol, found.window) == ("standard", 256)
    assert found.tokens == 255 * found.windows


@pytest.mark.parametrize(("context", "window"), [(96, 96), (4096, 2048), (None, 2048)])
def test_a_window_is_the_context_up_to_2048(context: int | None, window: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WREN)
    (text,) = evaluation_texts(section("python-docs"), tokenizer, context)
    assert text.tokens.shape[1] == window
    (same,) = evaluation_texts(
        section("python-docs", protocol="windows", window="context", windows=None),
        tokenizer,
        context,
    )
    assert same.tokens.shape[1] == window
    assert (text.protocol, same.protocol) == ("standard", "windows")


def test_of_c4_the_first_256_windows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = {"text": ["one two three four five six"] * 1100}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    tokenizer = AutoTokenizer.from_pretrained(WREN)
    (text,) = evaluation_texts(section("c4"), tokenizer, context=8)
    assert text.tokens.shape == (NAMED["c4"].windows, 8)
    (few,) = evaluation_texts(section("c4", windows=3), tokenizer, context=8)
    assert torch.equal(few.tokens, text.tokens[:3])
    (all_of_it,) = evaluation_texts(
        section("c4", protocol="windows", windows=None, window=8), tokenizer, context=8
    )
    assert len(all_of_it.tokens) > 256


def test_prompts_go_on_where_the_text_begins_anew() -> None:
    tokenizer = AutoTokenizer.from_pretrained(WREN)
    few = prompt_tokens(tokenizer, 3, 16)
    assert few.shape == (3, 16)
    many = prompt_tokens(tokenizer, 1, 1_000_000)[0]
    assert torch.equal(many[:48], few.flatten())
    starts = (many.unfold(0, 48, 1) == many[:48]).all(-1).nonzero().flatten()
    assert len(starts) > 1
