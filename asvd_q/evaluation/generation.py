"""Token by token, from any Runner."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from asvd_q.artefact import Runner

__all__ = ["generate"]


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
