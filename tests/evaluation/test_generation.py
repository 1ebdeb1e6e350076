"""Generation with a cache against running the whole prefix again at every step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asvd_q.artefact import Runner
from asvd_q.errors import AsvdQError
from asvd_q.evaluation.generation import generate, generate_text
from asvd_q.evaluation.runners import model_runner
from asvd_q.models import SourceModel
from tests.models.families import FAMILIES, plain_model, save_family
from tests.support import WREN

PROMPT = [5, 9, 17, 4]


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


def test_an_empty_prompt_is_told_in_one_line(tmp_path: Path) -> None:
    model = runner(save_family("llama", tmp_path))

    class Nothing:
        eos_token_id = None

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": []}

    with pytest.raises(AsvdQError, match="--prompt is empty"):
        next(generate_text(model, Nothing(), "", max_new_tokens=1))  # type: ignore[arg-type]
