"""Graphs in float16: padded batches, prefill in parts, and whole contexts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asvd_q.evaluation.padding import pad_left
from asvd_q_exporters.onnx import OnnxOptions
from tests.exporters.onnx.conftest import Export, export
from tests.exporters.onnx.padded import Side, of_row, passes, present_as_past
from tests.exporters.onnx.reference import reference_logits, relative, tokens
from tests.exporters.onnx.stores import eight_bit_store
from tests.exporters.onnx.test_decoding import CONTEXT, in_parts, prompts
from tests.families.models import MODELS, save_model
from tests.families.test_others import WORKING

_CASES = [
    *((name, "contrib") for name in ("llama", "gemma2", "gpt2", "opt", "phi3-longrope", "BLOOM")),
    *((name, "standard") for name in ("llama", "gemma2")),
]
_QUICK = [("gemma2", "contrib")]

_NEAR = 3e-3
"""What rounding leaves of logits in float16, against the same weights in float32."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, id="-".join(case), marks=() if case in _QUICK else pytest.mark.slow)
        for case in _CASES
    ],
)
def half(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    family, operators = request.param
    folder = tmp_path_factory.mktemp(family)
    saved = save_model(folder / "model", *(MODELS | WORKING)[family], tokenizer=False)
    options = OnnxOptions(operators=operators, accuracy_level=0, dtype="float16")
    return export(eight_bit_store(folder / "store", saved), folder / "onnx", options)


@pytest.mark.parametrize("sizes", [[48], [40, 1, 1, 6]], ids=str)
def test_padding_changes_no_logits(sizes: list[int], half: Export) -> None:
    rows = prompts(48, 9, 31)
    ids, mask = pad_left(rows)
    found = in_parts(half.exporter.open(half.folder), ids, sizes, mask)
    assert torch.isfinite(found).all()
    for row, logits in zip(rows, found, strict=True):
        expected = reference_logits(half.store, torch.tensor([row]))[0]
        assert relative(logits[-len(row) :], expected) < _NEAR


@pytest.mark.parametrize("sizes", [[CONTEXT], [100, 148, *[1] * 8]], ids=str)
def test_a_sequence_may_fill_the_context(sizes: list[int], half: Export) -> None:
    ids = tokens(2, CONTEXT, vocabulary=320)
    found = in_parts(half.exporter.open(half.folder), ids, sizes)
    assert relative(found, reference_logits(half.store, ids)) < _NEAR


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_is_passed_over(side: Side, half: Export) -> None:
    lengths, steps = (12, 5, 9), 4  # as long as a sliding window
    texts = tokens(len(lengths), max(lengths) + steps, vocabulary=320)
    session = half.exporter.open(half.folder).session
    found = present_as_past(session, passes(texts, lengths, side))
    assert np.isfinite(found[0]).all()
    for row, length in enumerate(lengths):
        expected = reference_logits(half.store, texts[row : row + 1, : length + steps])[0]
        assert relative(torch.from_numpy(of_row(found, row, lengths, side)), expected) < _NEAR
