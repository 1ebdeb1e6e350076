"""Generation with a cache against running the whole prefix again at every step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asvd_q.artefact import Runner
from asvd_q.errors import AsvdQError
from asvd_q.evaluation.generation import (
    generate,
    generate_batch,
    generate_text,
    generate_texts,
)
from asvd_q.evaluation.padding import pad_left, positions_behind
from asvd_q.evaluation.runners import model_runner
from asvd_q.models import SourceModel
from tests.models.families import FAMILIES, plain_model, save_family
from tests.support import WREN

PROMPT = [5, 9, 17, 4]
PROMPTS = [PROMPT, [7, 30, 41, 6, 55, 12, 23, 9, 18], [21]]


def by_prefix(folder: Path, count: int) -> list[int]:
    """Greedy, without any cache, by the plain model."""
    plain, tokens = plain_model(folder), torch.tensor([PROMPT])
    for _ in range(count):
        logits = plain(tokens, use_cache=False).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    return tokens[0, len(PROMPT) :].tolist()


def runner(folder: Path, *, stream: bool = False) -> Runner:
    return model_runner(SourceModel.open(str(folder)), stream=stream)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_the_whole_prefix(
    family: str, stream: bool, tmp_path: Path
) -> None:
    folder = save_family(family, tmp_path)
    found = list(generate(runner(folder, stream=stream), PROMPT, max_new_tokens=10))
    assert found == by_prefix(folder, 10)


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(tmp_path: Path) -> None:
    folder = save_family("llama", tmp_path)
    expected = by_prefix(folder, 10)
    stop = expected[4]
    found = generate(runner(folder), PROMPT, max_new_tokens=10, stop=frozenset({stop}))
    assert list(found) == expected[: expected.index(stop)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_continues_every_prompt_as_alone(family: str, stream: bool, tmp_path: Path) -> None:
    model = runner(save_family(family, tmp_path), stream=stream)
    batched = list(zip(*generate_batch(model, PROMPTS, max_new_tokens=8), strict=True))
    for prompt, found in zip(PROMPTS, batched, strict=True):
        assert list(found) == list(generate(model, prompt, max_new_tokens=8))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_logits(family: str, stream: bool, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path)
    model, (ids, mask) = runner(folder, stream=stream), pad_left(PROMPTS)
    first, cache = model.forward(ids, None, mask)
    longer = torch.cat([mask, torch.ones(3, 2, dtype=torch.int64)], dim=1)
    new = torch.tensor([[8, 3], [44, 5], [31, 60]])
    second, _ = model.forward(new, cache, longer)
    found = torch.cat([first, second], dim=1)
    assert found.isfinite().all()
    for prompt, tail, logits in zip(PROMPTS, new.tolist(), found, strict=True):
        with torch.no_grad():
            alone = plain_model(folder)(torch.tensor([prompt + tail]), use_cache=False).logits[0]
        torch.testing.assert_close(logits[-len(alone) :], alone, rtol=1e-4, atol=1e-4)


def test_prompts_of_a_batch_end_one_by_one(tmp_path: Path) -> None:
    model = runner(save_family("llama", tmp_path))
    alone = [list(generate(model, prompt, max_new_tokens=8)) for prompt in PROMPTS]
    stop = frozenset({alone[0][2], alone[2][5]})
    ends = [next((place for place, token in enumerate(row) if token in stop), 8) for row in alone]
    steps = list(generate_batch(model, PROMPTS, max_new_tokens=8, stop=stop))
    assert len(set(ends)) > 1
    assert len(steps) == max(ends)
    for row, end, found in zip(alone, ends, zip(*steps, strict=True), strict=True):
        assert list(found) == row[:end] + [None] * (len(steps) - end)


def test_sampling_depends_on_no_other_prompt(tmp_path: Path) -> None:
    model = runner(save_family("llama", tmp_path))
    batched = generate_batch(model, PROMPTS, max_new_tokens=8, temperature=1.0, seed=3)
    for prompt, found in zip(PROMPTS, zip(*batched, strict=True), strict=True):
        alone = generate(model, prompt, max_new_tokens=8, temperature=1.0, seed=3)
        assert list(found) == list(alone)


def test_padding_is_on_the_left() -> None:
    tokens, mask = pad_left([[5, 6, 7], [8]])
    assert tokens[mask.bool()].tolist() == [5, 6, 7, 8]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions_behind(mask).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_sampling_follows_the_seed(tmp_path: Path) -> None:
    model = runner(save_family("llama", tmp_path))

    def sample(seed: int, temperature: float) -> list[int]:
        return list(generate(model, PROMPT, max_new_tokens=12, temperature=temperature, seed=seed))

    assert sample(1, 5.0) == sample(1, 5.0)
    assert sample(1, 5.0) != sample(2, 5.0)
    greedy = list(generate(model, PROMPT, max_new_tokens=12))
    assert sample(1, 1e-3) == greedy


@pytest.fixture(scope="module")
def wren() -> SourceModel:
    return SourceModel.open(str(WREN))


def test_text_comes_in_pieces_that_join_to_the_decoded_whole(wren: SourceModel) -> None:
    model, prompt = model_runner(wren, stream=False), "The file"
    pieces = list(generate_text(model, wren.tokenizer, prompt, max_new_tokens=12))
    assert pieces[0] == prompt
    ids = wren.tokenizer(prompt)["input_ids"]
    tokens = list(
        generate(model, ids, max_new_tokens=12, stop=frozenset({wren.tokenizer.eos_token_id}))
    )
    whole = wren.tokenizer.decode(ids + tokens, skip_special_tokens=True)
    assert "".join(pieces[1:]) == whole[len(wren.tokenizer.decode(ids, skip_special_tokens=True)) :]
    assert len(pieces) > 2


def test_texts_of_a_batch_are_those_of_each_prompt(wren: SourceModel) -> None:
    model = model_runner(wren, stream=False)
    texts = ["The file", "def", "Once upon a time there was a little bird who"]
    together = generate_texts(model, wren.tokenizer, texts, max_new_tokens=12)
    for text, found in zip(texts, together, strict=True):
        assert found == "".join(generate_text(model, wren.tokenizer, text, max_new_tokens=12))


def test_a_text_ends_with_the_context(wren: SourceModel) -> None:
    model, prompt = model_runner(wren, stream=False), "The file"
    room = 4  # the last token follows all that the context holds
    context = len(wren.tokenizer(prompt)["input_ids"]) + room - 1
    expected = list(generate_text(model, wren.tokenizer, prompt, max_new_tokens=room))
    for count in (room, 100):
        settings = {"max_new_tokens": count, "context": context}
        assert list(generate_text(model, wren.tokenizer, prompt, **settings)) == expected
        assert generate_texts(model, wren.tokenizer, [prompt], **settings) == ["".join(expected)]
    settings = {"max_new_tokens": 1, "context": context - room}
    message = rf"--prompt has {context - room + 1} tokens, and the model's context is"
    with pytest.raises(AsvdQError, match=message):
        next(generate_text(model, wren.tokenizer, prompt, **settings))
    with pytest.raises(AsvdQError, match=message):
        generate_texts(model, wren.tokenizer, [prompt, "def"], **settings)


def test_an_empty_prompt_is_told_in_one_line(tmp_path: Path) -> None:
    model = runner(save_family("llama", tmp_path))

    class Nothing:
        eos_token_id = None

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": []}

    with pytest.raises(AsvdQError, match="--prompt is empty"):
        next(generate_text(model, Nothing(), "", max_new_tokens=1))  # type: ignore[arg-type]
