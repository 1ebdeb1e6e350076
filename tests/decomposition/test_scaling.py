"""Scaling matrices: normalisation, dead channels, damping that is raised and recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asvd_q.decomposition import (
    diagonal_scaling,
    identity_scaling,
    spectrum,
    whitening_scaling,
)
from asvd_q.decomposition.scaling import Scaling
from asvd_q.errors import NumericsError
from tests.decomposition.reference import HARD, random_case


def matrix_of(scaling: Scaling) -> torch.Tensor:
    assert scaling.matrix is not None
    return scaling.matrix


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_a_diagonal_has_mean_square_one_in_any_unit(alpha: float, unit: float) -> None:
    statistic = torch.tensor([0.0, 1e-3, 1.0, 5.0, 1000.0], dtype=torch.float64)
    scale = matrix_of(diagonal_scaling(statistic * unit, alpha, 1e-6))
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    assert float(scale.square().mean()) == pytest.approx(1, rel=1e-12)
    reference = (statistic.numpy() + 1e-6 * statistic.numpy().mean()) ** alpha
    reference /= np.sqrt((reference**2).mean())
    np.testing.assert_allclose(scale.numpy(), reference, rtol=1e-9)


def test_a_site_that_nothing_reaches_is_not_scaled() -> None:
    assert torch.equal(
        matrix_of(diagonal_scaling(torch.zeros(4), 0.5, 1e-6)), torch.ones(4).double()
    )
    assert torch.equal(matrix_of(whitening_scaling(torch.zeros(4, 4), 1e-6)), torch.eye(4).double())


def test_identity_leaves_the_weight_as_it_is() -> None:
    weight = random_case((3, 5)).weight.to(torch.bfloat16)
    assert torch.equal(identity_scaling().apply(weight), weight.double())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_bad_statistic_is_refused(bad: float) -> None:
    with pytest.raises(NumericsError, match="NaN, infinity or a negative number"):
        diagonal_scaling(torch.tensor([1.0, bad]), 0.5, 1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gram_is_refused(bad: float) -> None:
    gram = torch.eye(3)
    gram[1, 2] = bad
    with pytest.raises(NumericsError, match="NaN or infinity"):
        whitening_scaling(gram, 1e-6)


def test_whitening_is_a_root_of_the_damped_gram() -> None:
    gram = random_case((4, 20)).gram
    scaling = whitening_scaling(gram, 1e-3)
    root = matrix_of(scaling).numpy()
    expected = gram.numpy() / gram.numpy().trace() * 20 + 1e-3 * np.eye(20)
    np.testing.assert_allclose(root @ root.T, expected, atol=1e-12 * expected.max())
    assert (scaling.damping, scaling.retries) == (1e-3, 0)


def test_damping_is_raised_on_an_indefinite_gram_and_recorded() -> None:
    """Rounding can leave a Gram slightly indefinite; the first dampings are then too small."""
    vectors = torch.linalg.qr(random_case((6, 6)).weight).Q
    eigenvalues = torch.tensor([6.0, 1.0, 0.5, 0.5, 1e-9, -2e-3], dtype=torch.float64)
    gram = (vectors * eigenvalues) @ vectors.T
    scaling = whitening_scaling(gram, 1e-6)
    # In units of the mean eigenvalue the negative one is −1.5e-3: 1e-2 is the first above it.
    assert scaling.retries == 4
    assert scaling.damping == pytest.approx(1e-2)
    root = matrix_of(scaling)
    mean = float(eigenvalues.mean())
    torch.testing.assert_close(
        root @ root.T, gram / mean + scaling.damping * torch.eye(6, dtype=torch.float64)
    )


def test_a_singular_gram_needs_no_more_than_its_damping() -> None:
    inputs = random_case((4, 12)).inputs[:3]
    scaling = whitening_scaling(inputs.T @ inputs / 3, 1e-6)
    assert scaling.retries == 0
    assert torch.isfinite(matrix_of(scaling)).all()


def test_a_damping_above_one_is_used_as_given() -> None:
    scaling = whitening_scaling(random_case((4, 12)).gram, 5.0)
    assert (scaling.damping, scaling.retries) == (5.0, 0)


@pytest.mark.parametrize("damping", [0.0, 1e-6])
def test_a_gram_that_no_damping_saves_is_an_error_and_not_an_endless_loop(damping: float) -> None:
    gram = torch.diag(torch.tensor([10.0, 10.0, -15.0], dtype=torch.float64))
    with pytest.raises(NumericsError, match="no Cholesky factorisation at any damping"):
        whitening_scaling(gram, damping)


@pytest.mark.parametrize("kind", HARD)
def test_singular_values_times_the_unit_are_those_of_the_outputs(kind: str) -> None:
    """‖W x‖² summed over tokens, whatever S was divided by: layers can be compared."""
    case = HARD[kind](random_case((24, 40)))
    scaling = whitening_scaling(1e6 * case.gram, 1e-12)
    found = spectrum(case.weight, scaling)
    outputs = 1e3 * case.inputs @ case.weight.double().T
    energy = float(outputs.square().sum()) / len(outputs)
    assert float((found.unit * found.values).square().sum()) == pytest.approx(energy, rel=1e-6)
