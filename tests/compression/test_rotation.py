"""The gauge of the factors in the loop: invisible until they are quantized, and of one seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asvd_q.compression.decompose import decompose
from asvd_q.decomposition import identity_scaling, latent_rotation, rotate, spectrum, truncate
from asvd_q.plan import LayerPlan
from asvd_q.recipe import DecomposeSection
from asvd_q.statistics.collectors import DenseInputs, SiteStatistics
from asvd_q.store import Store
from tests.compression.job import compress_to, hashes
from tests.decomposition.reference import HARD, random_case
from tests.decomposition.test_refit import disturbed, moments
from tests.models.families import save_family

RANK = 9
RANKS = {"ranks": {"*": RANK}, "sigma_split": "both", "rotation": "none"}
REFIT = RANKS | {"scaling": "none", "refit": True}
RTN = {"bits": 4, "group_size": 16, "symmetric": False}
GAUGES = [
    {"rotation": "hadamard"},
    {"rotation": "random"},
    {"sigma_split": 0.3},
    {"sigma_split": "v", "rotation": "hadamard"},
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_family("llama", tmp_path / "model")


def products(store: Store) -> dict[str, np.ndarray[Any, Any]]:
    return {
        layer.record.name: (
            layer.weights["A"].dequantize().double() @ layer.weights["B"].dequantize().double()
        ).numpy()
        for layer in store.layers()
    }


@pytest.mark.parametrize("gauge", GAUGES, ids=str)
def test_without_quantization_it_is_the_same_model(
    gauge: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    plain = compress_to(tmp_path / "plain", model, decompose=RANKS)
    other = compress_to(tmp_path / "other", model, decompose=RANKS | gauge)
    expected, found = products(plain), products(other)
    for one, two in zip(plain.records(), other.records(), strict=True):
        size = np.abs(expected[one.name]).max()
        np.testing.assert_allclose(found[one.name], expected[one.name], rtol=0, atol=1e-5 * size)
        assert two.errors["decompose"] == pytest.approx(one.errors["decompose"], rel=1e-5)
        before, after = (
            store.layer(one.name).weights["A"].dequantize() for store in (plain, other)
        )
        assert (after - before).abs().max() > 1e-2 * before.abs().max()


@pytest.mark.parametrize("gauge", GAUGES, ids=str)
@pytest.mark.parametrize("scaling", ["none", "abs_mean", "whitening"])
@pytest.mark.parametrize("kind", HARD)
def test_refitted_factors_have_the_same_product(
    kind: str, scaling: str, gauge: dict[str, Any]
) -> None:
    case = HARD[kind](random_case((24, 40)))
    dense, gram, cross = moments(case.inputs, disturbed(case))
    magnitude = case.inputs.abs()
    statistics = SiteStatistics(
        tokens=len(case.inputs),
        abs_mean=magnitude.mean(0),
        abs_max=magnitude.amax(0),
        gram=gram,
        dense=DenseInputs(gram=dense, cross=cross),
    )
    plan = LayerPlan(
        name="layer",
        kind="layer",
        block=0,
        shape=(24, 40),
        form="factors",
        rank=RANK,
        quantization={"A": None, "B": None},
    )
    expected, found = (
        decompose(
            case.weight,
            plan,
            DecomposeSection.model_validate(REFIT | {"scaling": scaling} | other),
            statistics,
            None,
            seed=0,
        ).factors
        for other in ({}, gauge)
    )
    size = float(expected.A.norm() * expected.B.norm())
    torch.testing.assert_close(found.product(), expected.product(), rtol=0, atol=1e-10 * size)
    assert (found.B - expected.B).abs().max() > 1e-2 * expected.B.abs().max()


@pytest.mark.parametrize("gauge", GAUGES, ids=str)
def test_the_codes_change_and_the_decomposition_error_does_not(
    gauge: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    plain = compress_to(tmp_path / "plain", model, decompose=RANKS, quantize=RTN)
    other = compress_to(tmp_path / "other", model, decompose=RANKS | gauge, quantize=RTN)
    for one, two in zip(plain.records(), other.records(), strict=True):
        assert two.errors["decompose"] == pytest.approx(one.errors["decompose"], rel=1e-9)
        assert two.errors["quantize"] != one.errors["quantize"]
        assert two.errors["decompose"] < two.errors["quantize"] < 1


@pytest.mark.parametrize("rotation", ["hadamard", "random"])
def test_the_seed_and_the_layer_decide_the_rotation(
    rotation: Any, model: Path, tmp_path: Path
) -> None:
    section = RANKS | {"scaling": "none", "rotation": rotation}
    store = compress_to(tmp_path / "store", model, decompose=section, seed=3, windows=None)
    for layer in store.layers():
        name = layer.record.name
        weight = store.source.tensor(f"{name}.weight")
        factors = truncate(spectrum(weight, identity_scaling()), RANK)
        expected = rotate(factors, latent_rotation(RANK, rotation, 3, name))
        assert torch.equal(layer.weights["A"].dequantize(), expected.A.float()), name
        assert torch.equal(layer.weights["B"].dequantize(), expected.B.float()), name


def test_the_same_seed_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    section = RANKS | {"rotation": "hadamard"}
    one, two, other = (
        hashes(compress_to(tmp_path / folder, model, decompose=section, seed=seed).folder)
        for folder, seed in (("one", 1), ("two", 1), ("other", 2))
    )
    assert one == two
    assert one != other
