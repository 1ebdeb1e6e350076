"""Corrections against numpy's SVD of the outputs, and against least squares on the activations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from asvd_q.decomposition import (
    CorrectionTarget,
    Factors,
    leading_directions,
    projected_gram,
    refit_left,
    truncate,
)
from asvd_q.plan import QuantSpec
from asvd_q.quantization import quantize
from asvd_q.quantization.feedback import factorise
from tests.decomposition.reference import HARD, SHAPES, Case, random_case


def coarse(weight: Tensor) -> Tensor:
    """Two-bit codes of a weight."""
    return quantize(weight.double(), QuantSpec(bits=2, group_size=16)).dequantize().double()


def energy(difference: Tensor, gram: Tensor) -> float:
    """‖D x‖²: the mean square of the outputs of D."""
    return float(((difference @ gram) * difference).sum())


def root(gram: Tensor) -> np.ndarray:
    values, vectors = np.linalg.eigh(gram.numpy())
    found: np.ndarray = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return found


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_correction_is_the_best_of_its_rank(kind: str, shape: tuple[int, int]) -> None:
    """Against the singular values of E G^½, which no A B of that rank can beat."""
    case = HARD[kind](random_case(shape))
    codes = coarse(case.weight)
    target = CorrectionTarget(case.weight, case.gram)
    found = target.residual_spectrum(codes)
    residual = case.weight.double() - codes
    values = np.linalg.svd(residual.numpy() @ root(case.gram), compute_uv=False)
    whole = energy(residual, case.gram)
    for rank in range(1, min(shape) + 1):
        left = energy(residual - truncate(found, rank).product(), case.gram)
        best = float((values[rank:] ** 2).sum())
        assert best - 1e-9 * whole <= left <= best * (1 + 1e-3) + 1e-6 * whole


def test_the_correction_of_a_rank_deficient_gram_matrix_is_the_best_too() -> None:
    """Fewer tokens than channels."""
    case = random_case((24, 40))
    case = Case(case.weight, case.inputs[:20])
    codes = coarse(case.weight)
    residual = case.weight - codes
    values = np.linalg.svd(residual.numpy() @ root(case.gram), compute_uv=False)
    found = CorrectionTarget(case.weight, case.gram).residual_spectrum(codes)
    for rank in (1, 5, 12):
        left = energy(residual - truncate(found, rank).product(), case.gram)
        assert left == pytest.approx(float((values[rank:] ** 2).sum()), rel=1e-3)


def test_the_error_is_relative_to_the_dense_outputs() -> None:
    case = random_case((24, 40))
    codes = coarse(case.weight)
    outputs = case.inputs @ case.weight.T
    wrong = case.inputs @ (case.weight - codes).T
    expected = float(wrong.norm() / outputs.norm())
    assert CorrectionTarget(case.weight, case.gram).error(codes) == pytest.approx(expected)


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_projected_gram_matrix_measures_what_the_best_left_factor_leaves(
    kind: str, shape: tuple[int, int]
) -> None:
    """min over A of ‖(E − A B) x‖² by numpy's least squares on the activations."""
    case = HARD[kind](random_case(shape))
    rank = max(min(shape) // 3, 1)
    basis = random_case((rank, shape[1]), seed=9).weight
    error = random_case(shape, seed=4).weight
    projected = projected_gram(case.gram, basis)
    inputs = case.inputs.double().numpy()
    latent, outputs = inputs @ basis.numpy().T, inputs @ error.numpy().T
    best, *_ = np.linalg.lstsq(latent, outputs, rcond=1e-9)
    expected = ((outputs - latent @ best) ** 2).sum() / len(inputs)
    whole = energy(error, case.gram)
    assert energy(error, projected) == pytest.approx(expected, rel=1e-6, abs=1e-9 * whole)
    left = refit_left(Factors(error[:, :rank], basis), error, case.gram).product()
    assert energy(error - left, case.gram) == pytest.approx(expected, rel=1e-6, abs=1e-9 * whole)


@pytest.mark.parametrize("kind", HARD)
def test_the_leading_directions_are_those_that_the_projection_loses_most_with(kind: str) -> None:
    gram = HARD[kind](random_case((24, 40))).gram
    directions = leading_directions(gram)
    torch.testing.assert_close(
        directions @ directions.T, torch.eye(40, dtype=torch.float64), rtol=0, atol=1e-10
    )
    values = np.linalg.eigvalsh(gram.numpy())[::-1].copy()
    for rank in (1, 7, 20):
        left = float(projected_gram(gram, directions[:rank]).trace())
        assert left == pytest.approx(values[rank:].sum(), rel=1e-4, abs=1e-10 * values.sum())
        other = random_case((rank, 40), seed=rank).weight
        assert left <= float(projected_gram(gram, other).trace()) * (1 + 1e-9)


def test_equal_gram_matrices_have_equal_directions() -> None:
    gram = random_case((24, 40)).gram
    assert torch.equal(leading_directions(gram), leading_directions(gram.clone()))
    peaks = leading_directions(gram)
    assert (peaks.gather(1, peaks.abs().argmax(1, keepdim=True)) > 0).all()


def test_dead_channels_stay_dead_under_the_projection() -> None:
    gram = HARD["dead"](random_case((24, 40))).gram
    projected = projected_gram(gram, leading_directions(gram)[:6], damping=0.01)
    assert (projected[1::3] == 0).all()
    assert (projected[:, 1::3] == 0).all()
    assert (projected.diagonal()[0::3] > 0).all()


@pytest.mark.parametrize("kind", ["random", "outliers"])
def test_a_quantizer_damps_the_projected_matrix_as_it_would_the_whole_one(kind: str) -> None:
    gram = HARD[kind](random_case((24, 40))).gram
    basis, damping = leading_directions(gram)[:6], 0.01
    given = projected_gram(gram, basis, damping)
    found = factorise(given, damping)
    unit = given.diagonal().mean()
    hessian = (found.upper * found.cost) @ found.upper.T * unit
    expected = projected_gram(gram, basis)
    expected.diagonal().add_(damping * gram.diagonal().mean())
    torch.testing.assert_close(hessian, expected, rtol=1e-9, atol=1e-9 * float(unit))


@pytest.mark.parametrize("damping", [1e-12, 0.01])
def test_a_projection_onto_everything_leaves_a_matrix_that_codes_can_be_made_for(
    damping: float,
) -> None:
    gram = HARD["outliers"](random_case((24, 40))).gram
    projected = projected_gram(gram, torch.eye(40, dtype=torch.float64), damping)
    assert (projected.diagonal() >= 0).all()
    spec = QuantSpec(method="gptq", bits=2, group_size=16, damping=damping)
    codes = quantize(random_case((24, 40)).weight, spec, projected)
    assert torch.isfinite(codes.dequantize()).all()


def test_a_layer_that_nothing_reaches_has_no_error() -> None:
    case = random_case((5, 8))
    nothing = torch.zeros(8, 8, dtype=torch.float64)
    target = CorrectionTarget(case.weight, nothing)
    assert target.error(coarse(case.weight)) == 0
    assert torch.equal(projected_gram(nothing, target.directions[:2], 0.01), nothing)
    product = truncate(target.residual_spectrum(coarse(case.weight)), 2).product()
    assert math.isfinite(float(product.abs().max()))
