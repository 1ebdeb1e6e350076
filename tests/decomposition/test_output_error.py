"""The relative output error from the Gram against the outputs themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asvd_q.decomposition import (
    identity_scaling,
    relative_output_error,
    spectrum,
    truncate,
    whitening_scaling,
)
from tests.decomposition.reference import HARD, random_case


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (1, 7), (7, 1)])
def test_error_is_that_of_the_outputs(kind: str, shape: tuple[int, int]) -> None:
    case = HARD[kind](random_case(shape))
    approximation = truncate(spectrum(case.weight, identity_scaling()), max(min(shape) // 3, 1))
    ours = relative_output_error(case.weight, approximation.product(), case.gram)
    weight, inputs = case.weight.double().numpy(), case.inputs.numpy()
    outputs = inputs @ weight.T
    wrong = inputs @ approximation.product().numpy().T - outputs
    expected = np.linalg.norm(wrong) / np.linalg.norm(outputs)
    assert ours == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_without_a_gram_it_is_the_error_of_the_weights() -> None:
    weight = random_case((5, 8)).weight
    assert relative_output_error(weight, 0.75 * weight, None) == pytest.approx(0.25, rel=1e-12)


def test_a_layer_that_gives_nothing_has_no_error() -> None:
    weight = random_case((5, 8)).weight
    assert relative_output_error(torch.zeros(5, 8), torch.zeros(5, 8), None) == 0
    assert relative_output_error(weight, 0 * weight, torch.zeros(8, 8).double()) == 0


def test_whitening_minimises_the_output_error() -> None:
    """No other scaling may do better at the same rank: the claim of the method itself."""
    case = HARD["outliers"](random_case((24, 40)))
    best = truncate(spectrum(case.weight, whitening_scaling(case.gram, 1e-12)), 8).product()
    plain = truncate(spectrum(case.weight, identity_scaling()), 8).product()
    error = relative_output_error(case.weight, best, case.gram)
    assert error < relative_output_error(case.weight, plain, case.gram)
    outputs = case.inputs.numpy() @ case.weight.numpy().T
    values = np.linalg.svd(outputs, compute_uv=False)
    expected = np.sqrt((values[8:] ** 2).sum() / (values**2).sum())
    assert error == pytest.approx(expected, rel=1e-4)
