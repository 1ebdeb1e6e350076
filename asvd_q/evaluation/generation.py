"""Token by token, from any Runner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from asvd_q.artefact import Runner
from asvd_q.errors import AsvdQError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["generate", "generate_text"]


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
    random = torch.Generator().manual_seed(seed)
    tokens, cache = torch.tensor([prompt]), None
    for _ in range(max_new_tokens):
        logits, cache = runner.forward(tokens, cache)
        last = logits[0, -1].float()
        if temperature > 0:
            token = int(torch.multinomial((last / temperature).softmax(-1), 1, generator=random))
        else:
            token = int(last.argmax())
        if token in stop:
            return
        yield token
        tokens = torch.tensor([[token]])


def generate_text(
    runner: Runner,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[str]:
    """The prompt, then its continuation piece by piece as it is decoded.

    The text ends at the tokenizer's end-of-sequence token.
    """
    ids: list[int] = tokenizer(prompt)["input_ids"]
    if not ids:
        raise AsvdQError("--prompt is empty: give at least one word to continue")
    stop = frozenset() if tokenizer.eos_token_id is None else frozenset({tokenizer.eos_token_id})
    yield prompt
    shown, tokens = "", []
    for token in generate(
        runner,
        ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        stop=stop,
    ):
        tokens.append(token)
        text = tokenizer.decode(ids + tokens, skip_special_tokens=True)
        text = text[len(tokenizer.decode(ids, skip_special_tokens=True)) :]
        # A character may take several tokens: wait until it is whole.
        if text.endswith("\ufffd"):
            continue
        yield text[len(shown) :]
        shown = text
