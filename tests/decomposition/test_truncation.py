"""Weighted truncation against numpy's SVD of W S, for every scaling on easy and hard layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asvd_q.decomposition import (
    Scaling,
    Spectrum,
    diagonal_scaling,
    identity_scaling,
    spectrum,
    truncate,
    whitening_scaling,
)
from asvd_q.errors import NumericsError, RankError
from tests.decomposition.reference import (
    HARD,
    SHAPES,
    Array,
    Case,
    random_case,
    scaling_matrix,
    truncated_svd,
)

DAMPING = 1e-6
SCALINGS = [
    ("none", 0.0),
    ("abs_mean", 0.5),
    ("abs_mean", 1.0),
    ("abs_max", 0.5),
    ("abs_max", 1.0),
    ("rms", 0.5),
    ("rms", 1.0),
    ("whitening", 0.0),
]


def make_scaling(case: Case, name: str, alpha: float) -> Scaling:
    magnitude = case.inputs.abs()
    match name:
        case "none":
            return identity_scaling()
        case "whitening":
            return whitening_scaling(case.gram, DAMPING)
        case "abs_mean":
            statistic = magnitude.mean(0)
        case "abs_max":
            statistic = magnitude.amax(0)
        case _:
            statistic = case.gram.diagonal().sqrt()
    return diagonal_scaling(statistic, alpha, DAMPING)


def prepared(case: Case, name: str, alpha: float) -> tuple[Spectrum, Array, Array]:
    """Our spectrum, the weight, and the reference's S."""
    found = spectrum(case.weight, make_scaling(case, name, alpha))
    scale = scaling_matrix(name, case.inputs.numpy(), alpha, DAMPING)
    return found, case.weight.double().numpy(), scale


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize(("name", "alpha"), SCALINGS)
@pytest.mark.parametrize("kind", HARD)
def test_truncation_is_the_best_weighted_approximation(
    kind: str, name: str, alpha: float, shape: tuple[int, int]
) -> None:
    found, weight, scale = prepared(HARD[kind](random_case(shape)), name, alpha)
    tail = found.tail().numpy()
    size = np.linalg.norm(weight @ scale)
    assert tail.shape == (min(shape) + 1,)
    assert np.sqrt(tail[0]) == pytest.approx(size, rel=1e-9)
    for rank in range(1, min(shape) + 1):
        best, values = truncated_svd(weight, scale, rank)
        ours = truncate(found, rank).product().numpy()
        assert np.linalg.norm(ours @ scale - best) <= 1e-5 * size
        error = np.linalg.norm((weight - ours) @ scale)
        assert error == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), abs=1e-6 * size)
        assert np.sqrt(tail[rank]) == pytest.approx(error, abs=1e-6 * size)


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize(("name", "alpha"), SCALINGS)
def test_full_rank_gives_the_weight_back(kind: str, name: str, alpha: float) -> None:
    found, weight, scale = prepared(HARD[kind](random_case((24, 40))), name, alpha)
    ours = truncate(found, 24).product().numpy()
    assert np.linalg.norm((ours - weight) @ scale) <= 1e-6 * np.linalg.norm(weight @ scale)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)], ids=["wide", "tall", "square"])
@pytest.mark.parametrize(("name", "alpha"), SCALINGS)
def test_sigma_goes_where_it_is_asked_to_go(
    name: str, alpha: float, shape: tuple[int, int]
) -> None:
    found, weight, scale = prepared(random_case(shape), name, alpha)
    values = np.linalg.svd(weight @ scale, compute_uv=False)[:10]
    expected = {
        0.5: (values, values),
        1.0: (values**2, np.ones(10)),
        0.0: (np.ones(10), values**2),
        0.25: (values**0.5, values**1.5),
        0.8: (values**1.6, values**0.4),
    }
    plain = truncate(found, 10).product().numpy()
    for power, (of_a, of_b) in expected.items():
        factors = truncate(found, 10, power)
        a, b = factors.A.numpy(), factors.B.numpy() @ scale
        np.testing.assert_allclose(a.T @ a, np.diag(of_a), atol=1e-8 * of_a.max())
        np.testing.assert_allclose(b @ b.T, np.diag(of_b), atol=1e-8 * of_b.max())
        np.testing.assert_allclose(factors.product().numpy(), plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("name", ["none", "abs_mean", "whitening"])
@pytest.mark.parametrize("kind", HARD)
def test_any_power_of_sigma_gives_the_same_product(
    kind: str, name: str, shape: tuple[int, int]
) -> None:
    found, weight, scale = prepared(HARD[kind](random_case(shape)), name, 1.0)
    rank = max(2 * min(shape) // 3, 1)
    values = np.linalg.svd(weight @ scale, compute_uv=False)[:rank]
    alive = np.arange(rank) < (max(min(shape) // 2, 1) if kind == "rank-deficient" else rank)
    plain = truncate(found, rank).product().numpy()
    for power in (0.0, 0.25, 0.5, 0.8, 1.0):
        factors = truncate(found, rank, power)
        left = factors.A.numpy()
        expected = np.where(alive, values ** (2 * power), 0)
        np.testing.assert_allclose(left.T @ left, np.diag(expected), atol=1e-9 * expected[0])
        size = np.abs(plain).max()
        np.testing.assert_allclose(factors.product().numpy(), plain, rtol=0, atol=1e-10 * size)


@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)], ids=["wide", "tall", "square"])
@pytest.mark.parametrize("rank_of_weight", [0, 1, 9])
def test_components_beyond_the_numerical_rank_are_zero(
    rank_of_weight: int, shape: tuple[int, int], power: float
) -> None:
    case = random_case(shape)
    weight = case.weight[:, :rank_of_weight] @ case.weight[:rank_of_weight]
    found = spectrum(weight, whitening_scaling(case.gram, DAMPING))
    assert found.numerical_rank == rank_of_weight
    factors = truncate(found, 20, power)
    assert factors.A.shape == (shape[0], 20)
    assert factors.B.shape == (20, shape[1])
    assert not factors.A[:, rank_of_weight:].any()
    assert not factors.B[rank_of_weight:].any()
    torch.testing.assert_close(factors.product(), weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rank", [-1, 0, 25])
def test_a_rank_outside_the_shape_names_the_layer(rank: int) -> None:
    found = spectrum(random_case((24, 40)).weight, identity_scaling(), "model.layers.3.up_proj")
    with pytest.raises(
        RankError, match=rf"model\.layers\.3\.up_proj: rank {rank} is outside 1 … 24"
    ):
        truncate(found, rank)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_names_the_layer(value: float) -> None:
    weight = random_case((5, 6)).weight
    weight[2, 3] = value
    with pytest.raises(NumericsError, match=r"model\.layers\.3\.up_proj: .*NaN or infinity"):
        spectrum(weight, identity_scaling(), "model.layers.3.up_proj")


@pytest.mark.parametrize("unit", [1e-150, 1e-30, 1e30, 1e150])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)], ids=["wide", "tall"])
def test_units_do_not_matter(shape: tuple[int, int], unit: float) -> None:
    weight = random_case(shape).weight
    plain = truncate(spectrum(weight, identity_scaling()), 3, 0.0)
    scaled = truncate(spectrum(weight * unit, identity_scaling()), 3, 0.0)
    torch.testing.assert_close(scaled.product() / unit, plain.product(), rtol=1e-9, atol=1e-12)


def test_the_spectrum_of_half_precision_is_that_of_the_same_numbers_in_float64() -> None:
    weight = random_case((24, 40)).weight.to(torch.bfloat16)
    found = spectrum(weight, identity_scaling())
    assert found.values.dtype == found.left.dtype == torch.float64
    expected = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(found.values.numpy(), expected, rtol=1e-9)
