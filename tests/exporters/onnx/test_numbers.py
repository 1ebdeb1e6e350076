"""The artefact computes what the store holds: against transformers with dequantized weights."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from asvd_q.plan import QuantSpec
from asvd_q_exporters.onnx import OnnxOptions
from tests.exporters.onnx.conftest import Export, export
from tests.exporters.onnx.reference import (
    empty_past,
    reference_logits,
    relative,
    tokens,
)
from tests.quantization.nf4_reference import nf4
from tests.support import WREN, SourceModel, hand_made_store


@pytest.mark.parametrize("name", ["mixed", "tied", "nf4_export", "standard"])
def test_prefill_and_cached_steps_give_the_reference_logits(
    name: str, request: pytest.FixtureRequest
) -> None:
    made: Export = request.getfixturevalue(name)
    ids = tokens(2, 9)
    expected = reference_logits(made.store, ids)
    runner = made.exporter.open(made.folder)
    logits, cache = runner.forward(ids[:, :5])
    parts = [logits]
    for step in range(5, 9):
        logits, cache = runner.forward(ids[:, step : step + 1], cache)
        parts.append(logits)
    found = torch.cat(parts, dim=1)
    assert found.dtype == torch.float32
    assert relative(found, expected) < 1e-5
    assert relative(next(iter(runner.score([ids]))), expected) < 1e-5


def test_chunks_of_any_length_follow_a_past(mixed: Export) -> None:
    ids = tokens(1, 12)
    runner = mixed.exporter.open(mixed.folder)
    parts, cache = [], None
    for chunk in ids.split([1, 4, 7], dim=1):
        logits, cache = runner.forward(chunk, cache)
        parts.append(logits)
    assert relative(torch.cat(parts, dim=1), reference_logits(mixed.store, ids)) < 1e-5


def test_left_padding_changes_nothing_for_the_real_tokens(mixed: Export) -> None:
    ids = tokens(2, 7)
    session = mixed.exporter.open(mixed.folder).session
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    first = {
        "input_ids": ids[:, :6].numpy(),
        "attention_mask": mask[:, :6].numpy(),
    }
    logits, *past = session.run(None, first | empty_past(session, 2))
    names = [one.name for one in session.get_inputs() if one.name.startswith("past")]
    second = {
        "input_ids": ids[:, 6:].numpy(),
        "attention_mask": mask.numpy(),
    }
    last, *_ = session.run(None, second | dict(zip(names, past, strict=True)))
    found = torch.cat([torch.from_numpy(logits), torch.from_numpy(last)], dim=1)
    assert torch.isfinite(found).all()
    assert relative(found[0, 3:], reference_logits(mixed.store, ids[:1, 3:])[0]) < 1e-5
    assert relative(found[1], reference_logits(mixed.store, ids[1:])[0]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 19, 20, 22, 23])
def test_every_opset_gives_the_reference_logits(mixed: Export, tmp_path, opset: int) -> None:
    made = export(mixed.store, tmp_path / "onnx", OnnxOptions(accuracy_level=1, opset=opset))
    ids = tokens(2, 9)
    logits, _ = made.exporter.open(made.folder).forward(ids)
    assert relative(logits, reference_logits(mixed.store, ids)) < 1e-5


_EVERY_LEVEL = product([(4, 32), (8, 128), (2, 16)], [0, 4])
_DEFAULT_LEVEL = product([(3, 32), (5, 32), (6, 64), (7, -1)], [4])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("codes", "accuracy_level"), [*_EVERY_LEVEL, *_DEFAULT_LEVEL])
def test_a_real_model_stays_within_the_bounds(
    tmp_path, dtype, codes: tuple[int, int], accuracy_level
) -> None:
    source = SourceModel.open(str(WREN))
    bits, group = codes
    spec = QuantSpec(bits=bits, group_size=group, symmetric=False)
    store = hand_made_store(tmp_path / "store", source, lambda *_: (None, spec))
    options = OnnxOptions(dtype=dtype, accuracy_level=accuracy_level)
    made = export(store, tmp_path / "onnx", options)
    text = "Once there was a little bird who lived in a tall tree. Every day she sang. " * 8
    ids = source.tokenizer(text, return_tensors="pt").input_ids
    expected = reference_logits(store, ids).double()
    found = next(iter(made.exporter.open(made.folder).score([ids]))).double()
    log_p, log_q = expected.log_softmax(-1), found.log_softmax(-1)
    bounds = made.exporter.bounds_of(store.plan)
    assert relative(found, expected) <= bounds.relative_error
    assert (log_p.exp() * (log_p - log_q)).sum(-1).mean() <= bounds.kl
    assert (log_p.argmax(-1) == log_q.argmax(-1)).double().mean() >= bounds.agreement


@pytest.mark.slow
def test_nf4_factors_of_a_real_model_give_the_reference_logits(tmp_path) -> None:
    source = SourceModel.open(str(WREN))
    store = hand_made_store(tmp_path / "store", source, lambda *_: (64, nf4(64, double=True)))
    made = export(store, tmp_path / "onnx", OnnxOptions())
    for name, matrices in made.exporter.read(made.folder):
        for slot, weight in store.layer(name).weights.items():
            assert torch.equal(matrices[slot], weight.dequantize())
    text = "Once there was a little bird who lived in a tall tree. Every day she sang. " * 4
    ids = source.tokenizer(text, return_tensors="pt").input_ids
    runner = made.exporter.open(made.folder)
    logits, cache = runner.forward(ids[:, :-8])
    parts = [logits]
    for token in ids[:, -8:].split(1, dim=1):
        logits, cache = runner.forward(token, cache)
        parts.append(logits)
    assert relative(torch.cat(parts, dim=1), reference_logits(store, ids)) < 1e-5
