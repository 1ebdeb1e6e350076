"""What the loop measures against hooks on the plain model, dense or compressed up to a block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from asvd_q.compression import loop
from asvd_q.models.skeleton import build_skeleton
from asvd_q.statistics.collectors import SiteStatistics
from asvd_q.store import Store
from tests.compression.job import WINDOWS, compress_to, hashes
from tests.models.families import FAMILIES, plain_model, save_family
from tests.statistics.activations import captured_inputs

DECOMPOSE = {"ranks": {"*": 9}, "lm_head": True}
QUANTIZE = {"bits": 4, "group_size": 16}


def put_block_into(model: nn.Module, store: Store, block: int) -> None:
    """Overwrite a plain model's weights of one block with the products of the store's matrices."""
    for ref in build_skeleton(store.source).weights:
        found = store.replaced(ref.name)
        if ref.block == block and found is not None:
            product = found["weight"] if "weight" in found else found["A"] @ found["B"]
            ref.take(model.get_parameter(ref.tensor_name)).copy_(product)


def expected_inputs(store: Store, model: Path, *, sequential: bool) -> dict[str, Tensor]:
    """Inputs of every planned layer, its own block and those after it being dense."""
    plain = plain_model(model)
    found: dict[str, Tensor] = {}
    for block in store.blocks():
        names = [layer.name for layer in store.plan if layer.block == block]
        found |= captured_inputs(plain, names, [WINDOWS])
        if sequential and block is not None:
            put_block_into(plain, store, block)
    return found


@pytest.mark.parametrize("stage", ["factors", "codes", "dense-codes"])
@pytest.mark.parametrize("sequential", [False, True], ids=["from-dense", "sequential"])
@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_come_from_the_blocks_that_the_recipe_says(
    family: str, sequential: bool, stage: str, tmp_path: Path, seen: dict[str, SiteStatistics]
) -> None:
    model = save_family(family, tmp_path / "model")
    decompose = DECOMPOSE | ({"exclude": ["*.0.*"]} if stage == "dense-codes" else {})
    store = compress_to(
        tmp_path / "store",
        model,
        decompose=decompose,
        quantize=None if stage == "factors" else QUANTIZE,
        sequential=sequential,
    )
    inputs = expected_inputs(store, model, sequential=sequential)
    assert set(seen) == {layer.name for layer in store.plan if layer.changed}
    for name, statistics in seen.items():
        x = inputs[name].numpy()
        assert statistics.tokens == len(x) == WINDOWS.numel()
        close = {"rtol": 2e-4, "atol": 2e-4 * np.abs(x).max()}
        np.testing.assert_allclose(statistics.abs_mean, np.abs(x).mean(0), **close)
        np.testing.assert_allclose(statistics.abs_max, np.abs(x).max(0), **close)
        gram = x.T @ x / len(x)
        np.testing.assert_allclose(statistics.gram, gram, rtol=0, atol=2e-4 * gram.max())


def test_sequential_and_dense_statistics_differ_after_the_first_block(
    tmp_path: Path, seen: dict[str, SiteStatistics]
) -> None:
    """Otherwise the comparison above would prove nothing."""
    model = save_family("llama", tmp_path / "model")
    compress_to(tmp_path / "dense", model, decompose=DECOMPOSE)
    dense = dict(seen)
    compress_to(tmp_path / "sequential", model, decompose=DECOMPOSE, sequential=True)
    for name, statistics in seen.items():
        same = torch.allclose(statistics.gram, dense[name].gram, rtol=1e-2)
        assert same == name.startswith("model.layers.0.")


@pytest.mark.parametrize("sequential", [False, True], ids=["from-dense", "sequential"])
@pytest.mark.parametrize("quantize", [None, QUANTIZE], ids=["floats", "codes"])
def test_errors_of_the_records_are_those_of_the_outputs(
    quantize: dict[str, Any] | None, sequential: bool, tmp_path: Path
) -> None:
    model = save_family("llama", tmp_path / "model")
    store = compress_to(
        tmp_path / "store",
        model,
        decompose=DECOMPOSE,
        quantize=quantize,
        sequential=sequential,
    )
    inputs = expected_inputs(store, model, sequential=sequential)
    for layer in store.layers():
        record, x = layer.record, inputs[layer.record.name].numpy()
        weight = store.source.tensor(f"{record.name}.weight").double().numpy()
        a, b = (layer.weights[slot].dequantize().double().numpy() for slot in ("A", "B"))
        outputs = x @ weight.T
        expected = np.linalg.norm(x @ (a @ b).T - outputs) / np.linalg.norm(outputs)
        stage = "decompose" if quantize is None else "quantize"
        assert record.errors[stage] == pytest.approx(expected, rel=1e-3)
        assert record.error_basis == "output"


@pytest.mark.parametrize("scaling", ["abs_mean", "abs_max", "rms", "fisher", "whitening", "none"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_stored_factors_are_the_truncated_svd_of_the_scaled_weight(
    family: str, scaling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_family(family, tmp_path / "model")
    fisher: dict[str, Tensor] = {}
    original = loop.fisher_information

    def spy(*args: Any, **options: Any) -> dict[str, Tensor]:
        fisher.update(original(*args, **options))
        return fisher

    monkeypatch.setattr(loop, "fisher_information", spy)
    store = compress_to(
        tmp_path / "store",
        model,
        decompose=DECOMPOSE | {"scaling": scaling, "alpha": 0.5, "damping": 1e-3},
    )
    inputs = expected_inputs(store, model, sequential=False)
    refs = {ref.name: ref for ref in build_skeleton(store.source).weights}
    assert bool(fisher) == (scaling == "fisher")
    for layer in store.layers():
        name, ref = layer.record.name, refs[layer.record.name]
        weight = ref.take(store.source.tensor(ref.tensor_name)).double().numpy()
        x = inputs[name].numpy()
        scale = reference_scale(scaling, x, fisher.get(name))
        left, values, right = np.linalg.svd(weight @ scale, full_matrices=False)
        best = (left[:, :9] * values[:9]) @ right[:9]
        ours = layer.weights["A"].dequantize().double() @ layer.weights["B"].dequantize().double()
        error = np.linalg.norm(ours.numpy() @ scale - best) / np.linalg.norm(weight @ scale)
        assert error < 2e-4, name


def reference_scale(scaling: str, x: np.ndarray, fisher: Tensor | None) -> np.ndarray:
    """S by its definition, with a damping of 1e-3 and α of one half."""
    features = x.shape[1]
    if scaling == "none":
        return np.eye(features)
    if scaling == "whitening":
        gram = x.T @ x / len(x)
        return np.linalg.cholesky(gram + 1e-3 * gram.trace() / features * np.eye(features))
    if scaling == "fisher":
        assert fisher is not None
        statistic = fisher.numpy()
    elif scaling == "abs_mean":
        statistic = np.abs(x).mean(0)
    elif scaling == "abs_max":
        statistic = np.abs(x).max(0)
    else:
        statistic = np.sqrt((x**2).mean(0))
    return np.diag(np.sqrt(statistic + 1e-3 * statistic.mean()))


def test_hidden_states_on_disk_give_the_same_store(tmp_path: Path) -> None:
    model = save_family("gemma2", tmp_path / "model")
    memory = compress_to(tmp_path / "memory", model, decompose=DECOMPOSE, sequential=True)
    scratch = tmp_path / "scratch"
    disk = compress_to(
        tmp_path / "disk", model, decompose=DECOMPOSE, sequential=True, scratch=scratch
    )
    assert hashes(memory.folder) == hashes(disk.folder)
    assert list((tmp_path / "scratch").iterdir())
