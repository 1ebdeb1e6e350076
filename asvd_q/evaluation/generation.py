"""Token by token, from any Runner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from asvd_q.artefact import Runner
from asvd_q.errors import AsvdQError
from asvd_q.evaluation.padding import pad_left

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["generate", "generate_batch", "generate_text", "generate_texts"]


def generate(
    runner: Runner,
    prompt: list[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    stop: frozenset[int] = frozenset(),
) -> Iterator[int]:
    """Continue a prompt, one token at a time, through the Runner's cache.

    Args:
        prompt: token ids, at least one.
        temperature: 0 takes the most likely token; above it, tokens are sampled.
        seed: of the sampling.
        stop: tokens that end the text; they are not yielded.
    """
    for (token,) in generate_batch(
        runner,
        [prompt],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        stop=stop,
    ):
        assert token is not None
        yield token


def generate_batch(
    runner: Runner,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    stop: frozenset[int] = frozenset(),
) -> Iterator[list[int | None]]:
    """Continue several prompts at once, as `generate` continues each.

    Shorter prompts are padded on the left. All prompts are sampled with the same seed, so that
    none depends on the others.

    Yields:
        The next token of every prompt; None for those that have ended.
    """
    randoms = [torch.Generator().manual_seed(seed) for _ in prompts]
    tokens, mask = pad_left(prompts)
    padded, cache = not bool(mask.all()), None
    ended = [False] * len(prompts)
    for _ in range(max_new_tokens):
        # Without padding nothing is said of it, so that a Runner without masks will do.
        logits, cache = (
            runner.forward(tokens, cache, mask) if padded else runner.forward(tokens, cache)
        )
        chosen = [
            _choose(row, temperature, random)
            for row, random in zip(logits[:, -1].float(), randoms, strict=True)
        ]
        ended = [before or token in stop for before, token in zip(ended, chosen, strict=True)]
        if all(ended):
            return
        yield [None if over else token for over, token in zip(ended, chosen, strict=True)]
        tokens = torch.tensor(chosen)[:, None]
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)


def _choose(logits: torch.Tensor, temperature: float, random: torch.Generator) -> int:
    """One token of a distribution (vocabulary,)."""
    if temperature > 0:
        return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=random))
    return int(logits.argmax())


def generate_text(
    runner: Runner,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int,
    context: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[str]:
    """The prompt, then its continuation piece by piece as it is decoded.

    The text ends at the tokenizer's end-of-sequence token, or with the context.

    Raises:
        AsvdQError: the prompt is empty, or leaves no room in the context.
    """
    ids = _prompt_ids(tokenizer, prompt)
    max_new_tokens = _room([ids], max_new_tokens, context)
    yield prompt
    shown, tokens = "", []
    for token in generate(
        runner,
        ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        stop=_stop(tokenizer),
    ):
        tokens.append(token)
        text = _continuation(tokenizer, ids, tokens)
        yield text[len(shown) :]
        shown = text


def generate_texts(
    runner: Runner,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    context: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Several prompts, each with the continuation that it has alone; computed as one batch.

    Raises:
        AsvdQError: a prompt is empty, or leaves no room in the context.
    """
    ids = [_prompt_ids(tokenizer, prompt) for prompt in prompts]
    max_new_tokens = _room(ids, max_new_tokens, context)
    tokens: list[list[int]] = [[] for _ in prompts]
    for step in generate_batch(
        runner,
        ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        stop=_stop(tokenizer),
    ):
        for found, token in zip(tokens, step, strict=True):
            if token is not None:
                found.append(token)
    return [
        prompt + _continuation(tokenizer, *pair)
        for prompt, *pair in zip(prompts, ids, tokens, strict=True)
    ]


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    ids: list[int] = tokenizer(prompt)["input_ids"]
    if not ids:
        raise AsvdQError("--prompt is empty: give at least one word to continue")
    return ids


def _room(prompts: Sequence[list[int]], wanted: int, context: int | None) -> int:
    """How many tokens may follow the longest prompt; the last of them is read by none."""
    if context is None:
        return wanted
    longest = max(map(len, prompts))
    if longest > context:
        raise AsvdQError(
            f"--prompt has {longest} tokens, and the model's context is {context}: shorten it"
        )
    return min(wanted, context - longest + 1)


def _stop(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    end = tokenizer.eos_token_id
    return frozenset() if end is None else frozenset({end})


def _continuation(tokenizer: PreTrainedTokenizerBase, ids: list[int], tokens: list[int]) -> str:
    """What new tokens add to a prompt's text; a character takes several, and shows when whole."""
    text = tokenizer.decode(ids + tokens, skip_special_tokens=True)
    before = len(tokenizer.decode(ids, skip_special_tokens=True))
    return str(text[before:].rstrip("\ufffd"))
