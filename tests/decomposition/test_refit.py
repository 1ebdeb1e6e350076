"""The refit against least squares on the activations themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from asvd_q.decomposition import (
    identity_scaling,
    refit_left,
    refit_target,
    refitted_output_error,
    relative_output_error,
    spectrum,
    truncate,
    whitening_scaling,
)
from tests.decomposition.reference import HARD, SHAPES, Case, random_case

SMALL = 1e-10


def disturbed(case: Case) -> Tensor:
    """x̂: the inputs mixed a little and made noisy, as compressed layers before would do it."""
    generator = torch.Generator().manual_seed(5)
    features = case.inputs.shape[1]
    mixing = torch.eye(features, dtype=torch.float64)
    mixing += 0.2 * torch.randn(features, features, generator=generator).double() / features
    noise = torch.randn(case.inputs.shape, generator=generator).double()
    scale = case.inputs.square().mean(0).sqrt()
    return case.inputs @ mixing + 0.1 * noise * scale


def moments(x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E[x xᵀ], E[x̂ x̂ᵀ], E[x x̂ᵀ]."""
    count = len(x)
    return x.T @ x / count, seen.T @ seen / count, x.T @ seen / count


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_target_is_the_least_squares_map_from_the_changed_inputs(
    kind: str, shape: tuple[int, int]
) -> None:
    case = HARD[kind](random_case(shape))
    seen = disturbed(case)
    _, gram, cross = moments(case.inputs, seen)
    target = refit_target(case.weight, gram, cross, SMALL).numpy()
    outputs = case.inputs.numpy() @ case.weight.double().numpy().T
    expected, *_ = np.linalg.lstsq(seen.numpy(), outputs, rcond=1e-8)
    wanted, found = seen.numpy() @ expected, seen.numpy() @ target.T
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(outputs).max()


@pytest.mark.parametrize("kind", HARD)
def test_unchanged_inputs_leave_the_weight_as_it_is(kind: str) -> None:
    case = HARD[kind](random_case((24, 40)))
    target = refit_target(case.weight, case.gram, case.gram, 0.01)
    torch.testing.assert_close(target, case.weight.double(), rtol=1e-6, atol=1e-8)


def test_a_large_damping_leaves_the_weight_as_it_is() -> None:
    case = random_case((24, 40))
    _, gram, cross = moments(case.inputs, disturbed(case))
    target = refit_target(case.weight, gram, cross, 1e9)
    torch.testing.assert_close(target, case.weight, rtol=1e-5, atol=1e-6)


def test_directions_that_no_token_takes_keep_their_weights() -> None:
    case = HARD["dead"](random_case((24, 40)))
    seen = case.inputs * 0.5
    _, gram, cross = moments(case.inputs, seen)
    target = refit_target(case.weight, gram, cross, 0.01)
    torch.testing.assert_close(target[:, 1::3], case.weight[:, 1::3])
    assert (target[:, 0::3] - case.weight[:, 0::3]).abs().max() > 0.1


def test_a_layer_that_nothing_reaches_keeps_its_weight() -> None:
    case = random_case((5, 8))
    nothing = torch.zeros(8, 8, dtype=torch.float64)
    assert torch.equal(refit_target(case.weight, nothing, nothing, 0.01), case.weight)


def test_whitened_truncation_of_the_target_is_the_best_of_its_rank() -> None:
    """Against reduced-rank regression by numpy's SVD of the fitted outputs."""
    case = HARD["outliers"](random_case((24, 40)))
    seen, rank = disturbed(case), 7
    _, gram, cross = moments(case.inputs, seen)
    target = refit_target(case.weight, gram, cross, SMALL)
    found = truncate(spectrum(target, whitening_scaling(gram, SMALL)), rank).product().numpy()
    outputs = case.inputs.numpy() @ case.weight.numpy().T
    full, *_ = np.linalg.lstsq(seen.numpy(), outputs, rcond=None)
    fitted = seen.numpy() @ full
    left, values, right = np.linalg.svd(fitted, full_matrices=False)
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    ours = np.linalg.norm(seen.numpy() @ found.T - outputs)
    assert ours == pytest.approx(np.linalg.norm(best - outputs), rel=1e-5)


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_left_factor_is_the_least_squares_one(kind: str, shape: tuple[int, int]) -> None:
    case = HARD[kind](random_case(shape))
    seen, weight = disturbed(case), case.weight.double()
    _, gram, _ = moments(case.inputs, seen)
    factors = truncate(spectrum(weight, identity_scaling()), max(min(shape) // 2, 1))
    found = refit_left(factors, weight, gram)
    assert torch.equal(found.B, factors.B)
    latent = (seen @ factors.B.T).numpy()
    outputs = (seen @ weight.T).numpy()
    expected, *_ = np.linalg.lstsq(latent, outputs, rcond=1e-8)
    difference = np.linalg.norm(latent @ found.A.numpy().T - outputs)
    best = np.linalg.norm(latent @ expected - outputs)
    assert difference <= best * (1 + 1e-4) + 1e-6 * np.linalg.norm(outputs)


def test_the_left_factor_of_a_whitened_truncation_does_not_change() -> None:
    case = random_case((24, 40))
    factors = truncate(spectrum(case.weight, whitening_scaling(case.gram, SMALL)), 9)
    found = refit_left(factors, case.weight, case.gram)
    torch.testing.assert_close(found.product(), factors.product(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", HARD)
def test_the_error_is_that_of_the_outputs(kind: str) -> None:
    case = HARD[kind](random_case((24, 40)))
    seen = disturbed(case)
    dense, gram, cross = moments(case.inputs, seen)
    approximation = truncate(spectrum(case.weight, identity_scaling()), 9).product()
    ours = refitted_output_error(case.weight, approximation, dense, gram, cross)
    outputs = case.inputs.numpy() @ case.weight.double().numpy().T
    wrong = seen.numpy() @ approximation.numpy().T - outputs
    assert ours == pytest.approx(np.linalg.norm(wrong) / np.linalg.norm(outputs), rel=1e-6)


def test_the_error_of_unchanged_inputs_is_the_ordinary_one() -> None:
    case = random_case((24, 40))
    approximation = truncate(spectrum(case.weight, identity_scaling()), 9).product()
    ours = refitted_output_error(case.weight, approximation, case.gram, case.gram, case.gram)
    ordinary = relative_output_error(case.weight, approximation, case.gram)
    assert ours == pytest.approx(ordinary, rel=1e-9)
    silent = torch.zeros(40, 40, dtype=torch.float64)
    assert refitted_output_error(case.weight, approximation, silent, silent, silent) == 0
