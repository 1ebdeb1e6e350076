"""Padded batches as callers of ONNX Runtime feed them: masks, and who keeps keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from asvd_q_exporters.onnx.session import PROVIDERS, session_options
from tests.exporters.onnx.conftest import Export
from tests.exporters.onnx.graphs import Array
from tests.exporters.onnx.reference import empty_past, reference_model, tokens

_LENGTHS, _STEPS = (10, 6), 4
_LONG = max(_LENGTHS)
_ROOM = 32
"""Tokens in a buffer, more than any text here has."""

Decode = Callable[[Any, Iterator[tuple[Array, Array]]], list[Array]]


@pytest.fixture(scope="module")
def session(mixed: Export) -> Any:
    return onnxruntime.InferenceSession(
        mixed.folder / "model.onnx", session_options(), providers=PROVIDERS
    )


@pytest.fixture(scope="module")
def alone(mixed: Export) -> list[Array]:
    """Logits of every row without padding, in transformers: (tokens, vocabulary)."""
    model = reference_model(mixed.store)
    with torch.no_grad():
        return [
            model(input_ids=row[None, : length + _STEPS]).logits[0].numpy()
            for row, length in zip(_texts(), _LENGTHS, strict=True)
        ]


def _texts() -> torch.Tensor:
    """Each row's prompt, and the tokens that follow it."""
    return tokens(len(_LENGTHS), _LONG + _STEPS)


def _passes(side: str) -> Iterator[tuple[Array, Array]]:
    """Tokens and masks of the prefill, then of one token after the other.

    Padding on the right stays in the mask as a gap, as ONNX Runtime GenAI leaves it there.
    """
    texts = _texts().numpy()
    ids = np.zeros((len(_LENGTHS), _LONG), np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(_LENGTHS):
        place = slice(_LONG - length, None) if side == "left" else slice(length)
        ids[row, place] = texts[row, :length]
        mask[row, place] = 1
    yield ids, mask
    for step in range(_STEPS):
        mask = np.concatenate((mask, np.ones_like(mask[:, :1])), axis=1)
        yield np.stack([texts[row, [n + step]] for row, n in enumerate(_LENGTHS)]), mask


def _present_as_past(session: Any, passes: Iterator[tuple[Array, Array]]) -> list[Array]:
    """What a pass puts out is what the next one reads."""
    past = empty_past(session, len(_LENGTHS))
    found = []
    for ids, mask in passes:
        logits, *present = session.run(None, {"input_ids": ids, "attention_mask": mask, **past})
        assert all(value.shape[2] == mask.shape[1] for value in present)
        past = dict(zip(past, present, strict=True))
        found.append(logits)
    return found


def _in_one_buffer(session: Any, passes: Iterator[tuple[Array, Array]]) -> list[Array]:
    """Past and present are the same memory, longer than the text, and full of rubbish at first."""
    buffers = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(
            np.full((value.shape[0], value.shape[1], _ROOM, value.shape[3]), 1e3, np.float32)
        )
        for name, value in empty_past(session, len(_LENGTHS)).items()
    }
    found = []
    for ids, mask in passes:
        binding = session.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", mask)
        for name, value in buffers.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        found.append(binding.get_outputs()[-1].numpy())
    return found


@pytest.mark.parametrize("decode", [_present_as_past, _in_one_buffer])
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_row_is_as_if_it_were_alone(
    side: str, decode: Decode, session: Any, alone: list[Array]
) -> None:
    prefill, *steps = decode(session, _passes(side))
    assert np.isfinite(prefill).all()
    for row, length in enumerate(_LENGTHS):
        place = slice(_LONG - length, None) if side == "left" else slice(length)
        logits = np.concatenate([prefill[row, place], *(step[row] for step in steps)])
        error = np.linalg.norm(logits - alone[row], axis=-1)
        assert (error < 1e-5 * np.linalg.norm(alone[row], axis=-1)).all()
