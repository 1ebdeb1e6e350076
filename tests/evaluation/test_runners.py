"""Runners: whole or block by block, dense or compressed, all give one model's logits."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from asvd_q.artefact import METADATA_FILE, Runner
from asvd_q.errors import ArtefactError
from asvd_q.evaluation.runners import artefact_runner, model_runner
from asvd_q.evaluation.streaming import StreamingRunner
from asvd_q.evaluation.torch_runner import TorchRunner
from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.skeleton import build_skeleton
from asvd_q.plan import QuantSpec
from asvd_q.store import Store
from tests.compression.job import compress_to
from tests.models.families import FAMILIES, TOKENS, plain_logits, plain_model, save_family

BATCHES = [TOKENS, TOKENS[:1, :7], TOKENS[1:]]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_family(request.param, tmp_path / "model")


def compressed(model: Path, folder: Path) -> Store:
    return compress_to(
        folder,
        model,
        decompose={"ranks": {"*": 9}, "exclude": ["*.0.*"]},
        quantize={"bits": 4, "group_size": 16},
    )


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_dense_runner_gives_transformers_logits(stream: bool, model: Path) -> None:
    runner = model_runner(SourceModel.open(str(model)), stream=stream)
    assert isinstance(runner, StreamingRunner if stream else TorchRunner)
    for batch, logits in zip(BATCHES, runner.score(BATCHES), strict=True):
        assert logits.dtype == torch.float32
        assert torch.equal(logits, plain_logits(model, batch))


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_streaming_a_store_equals_running_it_whole(where: str, model: Path, tmp_path: Path) -> None:
    store = compressed(model, tmp_path / "store")
    folder = tmp_path / "states"
    folder.mkdir()
    blockwise = BlockwiseModel(store.source, replaced=store.replaced)
    streamed = StreamingRunner(blockwise, folder if where == "disk" else None)
    whole = model_runner(store.source, store.replaced, stream=False)
    for ours, theirs in zip(streamed.score(BATCHES), whole.score(BATCHES), strict=True):
        assert torch.equal(ours, theirs)
    assert bool(list(folder.iterdir())) == (where == "disk")


def test_a_store_runs_as_the_plain_model_with_its_products(model: Path, tmp_path: Path) -> None:
    store = compressed(model, tmp_path / "store")
    plain = plain_model(model)
    for ref in build_skeleton(store.source).weights:
        found = store.replaced(ref.name)
        if found is not None:
            product = found["weight"] if "weight" in found else found["A"] @ found["B"]
            ref.take(plain.get_parameter(ref.tensor_name)).copy_(product)
    runner = model_runner(store.source, store.replaced, stream=False)
    (logits,) = runner.score([TOKENS])
    expected = plain(TOKENS, use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("cuts", [(4,), (1, 2, 3), (10,)], ids=str)
def test_the_cache_continues_the_sequence(cuts: tuple[int, ...], stream: bool, model: Path) -> None:
    runner: Runner = model_runner(SourceModel.open(str(model)), stream=stream)
    whole, _ = runner.forward(TOKENS)
    torch.testing.assert_close(whole, plain_logits(model), rtol=1e-5, atol=1e-5)
    bounds, cache = [0, *cuts, TOKENS.shape[1]], None
    for start, end in itertools.pairwise(bounds):
        logits, cache = runner.forward(TOKENS[:, start:end], cache)
        assert logits.shape[1] == end - start
        torch.testing.assert_close(logits, whole[:, start:end], rtol=1e-4, atol=1e-4)


def test_a_model_too_large_for_the_free_memory_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SourceModel.open(str(save_family("llama", tmp_path)))
    needed = 4 * sum(info.numel for info in source.tensors.values())

    def with_free(size: float) -> Runner:
        class Memory:
            available = size

        monkeypatch.setattr("psutil.virtual_memory", Memory)
        return model_runner(source)

    assert isinstance(with_free(needed), StreamingRunner)
    assert isinstance(with_free(2 * needed), TorchRunner)


def test_a_store_is_no_artefact_to_run(tmp_path: Path) -> None:
    model = save_family("llama", tmp_path / "model")
    store = compress_to(
        tmp_path / "store", model, quantize=QuantSpec(bits=4).model_dump(), windows=None
    )
    with pytest.raises(ArtefactError, match=METADATA_FILE):
        artefact_runner(tmp_path)
    (tmp_path / METADATA_FILE).write_text(store.metadata("store").model_dump_json())
    with pytest.raises(ArtefactError, match="is a store"):
        artefact_runner(tmp_path)
    (tmp_path / METADATA_FILE).write_text("{")
    with pytest.raises(ArtefactError, match="is damaged") as caught:
        artefact_runner(tmp_path)
    assert "\n" not in str(caught.value)
