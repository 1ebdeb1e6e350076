"""Padded batches, fed to a session of ONNX Runtime as its callers do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import onnxruntime
from torch import Tensor

from tests.exporters.onnx.graphs import Array
from tests.exporters.onnx.reference import empty_past

__all__ = ["Decode", "Side", "in_one_buffer", "of_row", "passes", "present_as_past"]

Side = Literal["left", "right"]
Decode = Callable[[Any, Iterator[tuple[Array, Array]]], list[Array]]

_ROOM = 32
"""Tokens in a buffer, more than any text here has."""


def passes(texts: Tensor, lengths: Sequence[int], side: Side) -> Iterator[tuple[Array, Array]]:
    """Tokens and masks of the prefill, then of one token after the other.

    Padding on the right stays in the mask as a gap, as ONNX Runtime GenAI leaves it there.

    Args:
        texts: (batch, tokens) each row's prompt, and the tokens that follow it.
        lengths: of the prompts. All rows get as many tokens behind them as the longest has.
    """
    rows, longest = texts.numpy(), max(lengths)
    ids = np.zeros((len(lengths), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, _place(lengths, row, side)] = rows[row, :length]
        mask[row, _place(lengths, row, side)] = 1
    yield ids, mask
    for step in range(texts.shape[1] - longest):
        mask = np.concatenate((mask, np.ones_like(mask[:, :1])), axis=1)
        yield np.stack([rows[row, [n + step]] for row, n in enumerate(lengths)]), mask


def of_row(found: Sequence[Array], row: int, lengths: Sequence[int], side: Side) -> Array:
    """Logits (tokens, vocabulary) of one row's own tokens, out of those of all passes."""
    prefill, *steps = found
    own = prefill[row, _place(lengths, row, side)]
    return np.concatenate([own, *(step[row] for step in steps)]).astype(np.float32)


def present_as_past(session: Any, fed: Iterator[tuple[Array, Array]]) -> list[Array]:
    """Logits of every pass: what one puts out is what the next one reads."""
    past: dict[str, Array] = {}
    found = []
    for ids, mask in fed:
        past = past or empty_past(session, len(ids))
        logits, *present = session.run(None, _inputs(session, ids, mask) | past)
        assert all(value.shape[2] == mask.shape[1] for value in present)
        past = dict(zip(past, present, strict=True))
        found.append(logits)
    return found


def in_one_buffer(session: Any, fed: Iterator[tuple[Array, Array]]) -> list[Array]:
    """Past and present are the same memory, longer than the text, and full of rubbish at first."""
    buffers: dict[str, onnxruntime.OrtValue] = {}
    found = []
    for ids, mask in fed:
        buffers = buffers or {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(
                np.full((*value.shape[:2], _ROOM, value.shape[3]), 1e3, value.dtype)
            )
            for name, value in empty_past(session, len(ids)).items()
        }
        binding = session.io_binding()
        for name, values in _inputs(session, ids, mask).items():
            binding.bind_cpu_input(name, values)
        for name, value in buffers.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        found.append(binding.get_outputs()[-1].numpy())
    return found


def _place(lengths: Sequence[int], row: int, side: Side) -> slice:
    """Where a row's prompt lies."""
    return slice(max(lengths) - lengths[row], None) if side == "left" else slice(lengths[row])


def _inputs(session: Any, ids: Array, mask: Array) -> dict[str, Array]:
    """Without the past; positions, where the graph reads them, count a row's own tokens."""
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {one.name: given[one.name] for one in session.get_inputs() if one.name in given}
