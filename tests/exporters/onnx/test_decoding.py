"""Padded batches, whole contexts, and prefill in parts, in every family that the README names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from asvd_q.artefact import Runner
from asvd_q.errors import ArtefactError
from asvd_q.evaluation.generation import generate, generate_batch
from asvd_q.evaluation.padding import pad_left
from asvd_q.evaluation.torch_runner import TorchRunner
from asvd_q_exporters.onnx import OnnxOptions
from asvd_q_exporters.onnx.keys import POSITIONS_KEY
from tests.exporters.onnx.conftest import Export, export
from tests.exporters.onnx.padded import Side, of_row, passes, present_as_past
from tests.exporters.onnx.reference import reference_logits, reference_model, relative, tokens
from tests.exporters.onnx.stores import eight_bit_store
from tests.families.models import MODELS, save_model
from tests.families.test_others import WORKING

CONTEXT = 256
"""What every model of `MODELS` can see."""

_PLAIN = ("GPT-J", "BLOOM", "Falcon")
"""Families whose attention no operator of the runtime computes."""

_CASES = [
    *((name, "contrib") for name in (*MODELS, *_PLAIN)),
    *((name, "standard") for name in MODELS),
]
_QUICK = [("llama", "contrib"), ("gpt2", "contrib"), ("gemma2", "standard")]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, id="-".join(case), marks=() if case in _QUICK else pytest.mark.slow)
        for case in _CASES
    ],
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A family's model in the runtime's own operators, or in those of ONNX alone."""
    family, operators = request.param
    folder = tmp_path_factory.mktemp(family)
    saved = save_model(folder / "model", *(MODELS | WORKING)[family], tokenizer=False)
    options = OnnxOptions(operators=operators, accuracy_level=0)
    return export(eight_bit_store(folder / "store", saved), folder / "onnx", options)


def in_parts(runner: Runner, ids: Tensor, sizes: list[int], mask: Tensor | None = None) -> Tensor:
    """Logits of (batch, tokens) that are given part by part; the parts add up to all tokens."""
    parts, cache, end = [], None, 0
    for chunk in ids.split(sizes, dim=1):
        end += chunk.shape[1]
        seen = None if mask is None else mask[:, :end]
        logits, cache = runner.forward(chunk, cache, seen)
        parts.append(logits)
    return torch.cat(parts, dim=1)


def prompts(*lengths: int) -> list[list[int]]:
    """Random, none of them the start of another; no special tokens."""
    rows = tokens(len(lengths), max(lengths), vocabulary=256) + 3
    return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]


def test_a_padded_batch_decodes_as_each_prompt_alone(made: Export) -> None:
    # One prompt shorter than a sliding window, one longer, and one that is longer with its answer.
    rows = prompts(5, 40, 12)
    runner = made.exporter.open(made.folder)
    batched = list(zip(*generate_batch(runner, rows, max_new_tokens=12), strict=True))
    plain = TorchRunner(reference_model(made.store), "torch")
    in_torch = list(zip(*generate_batch(plain, rows, max_new_tokens=12), strict=True))
    for row, ours, theirs in zip(rows, batched, in_torch, strict=True):
        alone = list(generate(runner, row, max_new_tokens=12))
        assert list(ours) == alone
        assert list(theirs) == alone


@pytest.mark.parametrize("sizes", [[48], [30, 18], [40, 1, 1, 6]], ids=str)
def test_padding_changes_no_logits(sizes: list[int], made: Export) -> None:
    rows = prompts(48, 9, 31)
    ids, mask = pad_left(rows)
    for runner in (made.exporter.open(made.folder), TorchRunner(reference_model(made.store), "")):
        found = in_parts(runner, ids, sizes, mask)
        assert torch.isfinite(found).all()
        for row, logits in zip(rows, found, strict=True):
            expected = reference_logits(made.store, torch.tensor([row]))[0]
            assert relative(logits[-len(row) :], expected) < 1e-5


@pytest.mark.parametrize("sizes", [[CONTEXT], [128, 128], [100, 148, *[1] * 8], [1, 255]], ids=str)
def test_a_sequence_may_fill_the_context(sizes: list[int], made: Export) -> None:
    ids = tokens(2, CONTEXT, vocabulary=320)
    found = in_parts(made.exporter.open(made.folder), ids, sizes)
    assert relative(found, reference_logits(made.store, ids)) < 1e-5


def test_a_longer_sequence_than_there_are_positions_for_is_refused(made: Export) -> None:
    """Where positions are rows of a table, that is; rotations in the graph go on."""
    runner, ids = made.exporter.open(made.folder), tokens(1, CONTEXT + 1, vocabulary=320)
    tabled = made.store.source.config.model_type in ("gpt2", "opt", "gptj")
    if tabled or POSITIONS_KEY in runner.session.get_modelmeta().custom_metadata_map:
        with pytest.raises(ArtefactError, match=r"257.*: .*use fewer"):
            runner.forward(ids)
    else:
        assert torch.isfinite(runner.forward(ids)[0]).all()


def test_a_graph_takes_no_more_tokens_than_it_has_angles_for(mixed: Export) -> None:
    """Beyond its table the operator would read what lies there, and say nothing."""
    context = 128
    assert mixed.store.source.config.max_position_embeddings == context
    runner = mixed.exporter.open(mixed.folder)
    ids = tokens(2, context + 1)
    logits, cache = runner.forward(ids[:, :context])
    assert torch.isfinite(logits).all()
    words = "takes 128 tokens, which is the model's context, and would have to take 129: use fewer"
    with pytest.raises(ArtefactError, match=words):
        runner.forward(ids)
    with pytest.raises(ArtefactError, match=words):
        runner.forward(ids[:, context:], cache)
    _, cache = runner.forward(ids[:, :100])
    with pytest.raises(ArtefactError, match=words):
        runner.forward(ids[:, 100:], cache)
    with pytest.raises(ArtefactError, match=words):  # padding takes room in the mask and the cache
        runner.forward(ids, None, torch.tensor([[0] * 9 + [1] * 120] * 2))
    new = list(generate(runner, ids[0, :120].tolist(), max_new_tokens=9))  # the last is not read
    assert len(new) == 9
    with pytest.raises(ArtefactError, match=words):
        list(generate(runner, ids[0, :120].tolist(), max_new_tokens=10))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_is_passed_over(side: Side, made: Export) -> None:
    """As callers of ONNX Runtime feed it.

    With plain attention, padding on the right takes up room in a sliding window, as it does in
    transformers: there no row is longer than the window, padding included.
    """
    windowed = getattr(made.store.source.config, "sliding_window", None) is not None
    narrow = windowed and not made.exporter.options.fused
    lengths, steps = (12, 5, 9) if narrow else (40, 5, 12), 4
    texts = tokens(len(lengths), max(lengths) + steps, vocabulary=320)
    session = made.exporter.open(made.folder).session
    found = present_as_past(session, passes(texts, lengths, side))
    assert np.isfinite(found[0]).all()
    for row, length in enumerate(lengths):
        expected = reference_logits(made.store, texts[row : row + 1, : length + steps])[0]
        own = torch.from_numpy(of_row(found, row, lengths, side))
        assert relative(own, expected) < 1e-5
