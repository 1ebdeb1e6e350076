"""The refit in the loop: site by site, against hooks on two plain models run side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from asvd_q.errors import ModelError
from asvd_q.models.refs import Site
from asvd_q.models.skeleton import build_skeleton
from asvd_q.quantization import quantize
from asvd_q.statistics.collectors import SiteStatistics, collecting_pairs
from asvd_q.store import Store
from tests.compression.job import WINDOWS, compress_to, hashes
from tests.models.families import FAMILIES, plain_model, save_family
from tests.statistics.activations import captured_inputs

REFIT = {"ranks": {"*": 9}, "refit": True}
HEAD = REFIT | {"lm_head": True}
QUANTIZE = {"bits": 4, "group_size": 16}


def put_layer_into(model: nn.Module, store: Store, name: str) -> None:
    """Overwrite a plain model's weight with the product of the store's matrices."""
    ref = next(ref for ref in build_skeleton(store.source).weights if ref.name == name)
    found = store.replaced(name)
    assert found is not None
    product = found["weight"] if "weight" in found else found["A"] @ found["B"]
    ref.take(model.get_parameter(ref.tensor_name)).copy_(product)


@pytest.mark.parametrize("quantize", [None, QUANTIZE], ids=["floats", "codes"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_site_sees_everything_compressed_before_it(
    family: str, quantize: dict[str, Any] | None, tmp_path: Path, seen: dict[str, SiteStatistics]
) -> None:
    model = save_family(family, tmp_path / "model")
    store = compress_to(
        tmp_path / "store", model, decompose=HEAD, quantize=quantize, sequential=True
    )
    plain, compressed = plain_model(model), plain_model(model)
    assert set(seen) == {layer.name for layer in store.plan}
    inputs = captured_inputs(plain, list(seen), [WINDOWS])
    site: list[str] = []
    for name, statistics in seen.items():
        x = inputs[name]
        if site and not torch.equal(x, inputs[site[0]]):
            for done in site:
                put_layer_into(compressed, store, done)
            site = []
        site.append(name)
        arrived = captured_inputs(compressed, [name], [WINDOWS])[name]
        assert statistics.dense is not None
        scale = float(statistics.dense.gram.diagonal().max())
        for found, one, two in (
            (statistics.gram, arrived, arrived),
            (statistics.dense.gram, x, x),
            (statistics.dense.cross, x, arrived),
        ):
            expected = one.double().T @ two.double() / len(one)
            assert float((found - expected).abs().max()) <= 1e-4 * scale, name


@pytest.mark.parametrize("scaling", ["none", "abs_mean", "whitening", "fisher"])
def test_layers_end_nearer_to_the_dense_outputs(scaling: str, tmp_path: Path) -> None:
    """What the refit minimises, measured on both models' own activations."""
    model = save_family("llama", tmp_path / "model")
    plain = plain_model(model)
    total: dict[bool, float] = {}
    for refit in (False, True):
        section = REFIT | {"scaling": scaling, "refit": refit, "refit_damping": 1e-6}
        store = compress_to(tmp_path / f"{refit}", model, decompose=section, sequential=True)
        compressed = plain_model(model)
        for layer in store.plan:
            put_layer_into(compressed, store, layer.name)
        last = [layer.name for layer in store.plan if layer.kind == "down_proj"]
        one = captured_inputs(plain, last, [WINDOWS])
        two = captured_inputs(compressed, last, [WINDOWS])
        total[refit] = 0.0
        for name in last:
            outputs = one[name] @ plain.get_submodule(name).weight.double().T
            difference = two[name] @ compressed.get_submodule(name).weight.double().T - outputs
            total[refit] += float((difference.norm() / outputs.norm()).square())
    assert total[True] < total[False]


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_dense_layers_are_refitted_before_they_are_quantized(
    method: str, tmp_path: Path, seen: dict[str, SiteStatistics]
) -> None:
    """What is quantized is W (C + λI) (Ĝ + λI)⁻¹, here from numpy, and not W."""
    model = save_family("llama", tmp_path / "model")
    settings = {"method": method, "bits": 3, "group_size": 16, "refit": True, "refit_damping": 1e-3}
    store = compress_to(tmp_path / "store", model, quantize=settings, sequential=True)
    moved = {}
    for layer in store.layers():
        name, spec = layer.record.name, layer.record.quantization["weight"]
        statistics = seen[name]
        assert statistics.dense is not None
        assert spec is not None
        gram, cross = statistics.gram.numpy(), statistics.dense.cross.numpy()
        ridge = 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram))
        weight = store.source.tensor(f"{name}.weight").double()
        target = torch.from_numpy(weight.numpy() @ (cross + ridge) @ np.linalg.inv(gram + ridge))
        found = layer.weights["weight"].dequantize()
        expected, plain = (
            quantize(matrix, spec, statistics.gram).dequantize() for matrix in (target, weight)
        )
        assert torch.equal(found, expected), name
        moved[name] = not torch.equal(found, plain)
    first = [name for name in moved if name.startswith("model.layers.0.self_attn.q")]
    assert not any(moved[name] for name in first)
    assert all(moved[name] for name in moved if name.startswith("model.layers.1."))


def test_the_recorded_error_is_that_against_the_dense_model(tmp_path: Path) -> None:
    model = save_family("llama", tmp_path / "model")
    store = compress_to(tmp_path / "store", model, decompose=REFIT, sequential=True)
    plain, compressed = plain_model(model), plain_model(model)
    for layer in store.plan:
        put_layer_into(compressed, store, layer.name)
    for record in store.records():
        x = captured_inputs(plain, [record.name], [WINDOWS])[record.name]
        arrived = captured_inputs(compressed, [record.name], [WINDOWS])[record.name]
        outputs = x @ plain.get_submodule(record.name).weight.double().T
        found = arrived @ compressed.get_submodule(record.name).weight.double().T
        expected = float((found - outputs).norm() / outputs.norm())
        assert record.errors["decompose"] == pytest.approx(expected, rel=1e-3)


def test_hidden_states_on_disk_give_the_same_store(tmp_path: Path) -> None:
    model = save_family("llama", tmp_path / "model")
    memory = compress_to(tmp_path / "memory", model, decompose=HEAD, sequential=True)
    scratch = tmp_path / "scratch"
    disk = compress_to(tmp_path / "disk", model, decompose=HEAD, sequential=True, scratch=scratch)
    assert hashes(memory.folder) == hashes(disk.folder)


class StoppedError(Exception):
    """Stands for any interruption that Python still sees."""


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_refit_ends_with_the_same_bytes(after: int, tmp_path: Path) -> None:
    model = save_family("llama", tmp_path / "model")
    undisturbed = compress_to(tmp_path / "undisturbed", model, decompose=HEAD, sequential=True)

    def stop(stage: str, done: int, total: int) -> None:
        if done == after:
            raise StoppedError

    with pytest.raises(StoppedError):
        compress_to(tmp_path / "store", model, decompose=HEAD, sequential=True, progress=stop)
    found = compress_to(tmp_path / "store", model, decompose=HEAD, sequential=True)
    assert hashes(found.folder) == hashes(undisturbed.folder)


def test_other_tokens_at_a_site_are_refused_by_name() -> None:
    """As a mixture of experts sends them once its router sees other inputs."""
    site = Site(name="block.layer", block=0, modules=("block.layer",), features=3)
    dense, compressed = (nn.ModuleDict({"layer": nn.Linear(3, 2)}) for _ in range(2))
    with collecting_pairs(dense, compressed, "block", [site], "cpu"):
        dense["layer"](torch.ones(4, 3))
        with pytest.raises(ModelError, match=r"block\.layer: .*set refit to false"):
            compressed["layer"](torch.ones(5, 3))
