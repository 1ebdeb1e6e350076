"""Text up to a stop string, from any Runner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from asvd_q.artefact import Runner
from asvd_q.evaluation.generation import generate_batch
from asvd_q.evaluation.tasks.scoring import Advance

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["generate_until"]


def generate_until(
    runner: Runner,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    until: Sequence[str],
    max_new_tokens: int,
    temperature: float = 0.0,
    batch_size: int,
    advance: Advance = lambda done, total: None,
) -> list[str]:
    """Continue every prompt until one of the strings appears; the text may go on behind it.

    Args:
        prompts: token ids, each at least one.
        until: the end-of-sequence token ends a text whatever they are.
        batch_size: prompts per forward pass; those of like length go together.
        advance: called with the prompts done and their number.
    """
    end = tokenizer.eos_token_id
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        tokens: list[list[int]] = [[] for _ in batch]
        ended = [False] * len(batch)
        for step in generate_batch(
            runner,
            [prompts[index] for index in batch],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            stop=frozenset() if end is None else frozenset({end}),
        ):
            for place, token in enumerate(step):
                if token is None:
                    ended[place] = True
                elif not ended[place]:
                    tokens[place].append(token)
                    text = tokenizer.decode(tokens[place], skip_special_tokens=True)
                    ended[place] = any(string in text for string in until if string)
            if all(ended):
                break
        for index, found in zip(batch, tokens, strict=True):
            texts[index] = tokenizer.decode(found, skip_special_tokens=True)
        advance(min(start + batch_size, len(order)), len(order))
    return texts
