"""Padded batches as callers of ONNX Runtime feed them: masks, and who keeps keys and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from asvd_q_exporters.onnx.session import PROVIDERS, session_options
from tests.exporters.onnx.conftest import Export
from tests.exporters.onnx.graphs import Array
from tests.exporters.onnx.padded import (
    Decode,
    Side,
    in_one_buffer,
    of_row,
    passes,
    present_as_past,
)
from tests.exporters.onnx.reference import reference_model, tokens

_LENGTHS, _STEPS = (10, 6), 4


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
    return tokens(len(_LENGTHS), max(_LENGTHS) + _STEPS)


@pytest.mark.parametrize("decode", [present_as_past, in_one_buffer])
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_row_is_as_if_it_were_alone(
    side: Side, decode: Decode, session: Any, alone: list[Array]
) -> None:
    found = decode(session, passes(_texts(), _LENGTHS, side))
    assert np.isfinite(found[0]).all()
    for row, expected in enumerate(alone):
        error = np.linalg.norm(of_row(found, row, _LENGTHS, side) - expected, axis=-1)
        assert (error < 1e-5 * np.linalg.norm(expected, axis=-1)).all()
