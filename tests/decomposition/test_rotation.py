"""Rotations of the latent: orthogonal, of the laws they claim, and invisible in the product."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from asvd_q.decomposition import (
    identity_scaling,
    latent_rotation,
    rotate,
    spectrum,
    truncate,
    whitening_scaling,
)
from tests.decomposition.reference import HARD, SHAPES, random_case

Kind = Literal["hadamard", "random"]

KINDS: list[Kind] = ["hadamard", "random"]
RANKS = [1, 2, 3, 5, 6, 7, 12, 32, 61, 96, 127, 160, 256]
NAME = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", RANKS)
def test_a_rotation_is_orthogonal(rank: int, kind: Kind) -> None:
    rotation = latent_rotation(rank, kind, 0, NAME).numpy()
    assert (rotation.shape, rotation.dtype) == ((rank, rank), np.float64)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(rank), rtol=0, atol=1e-13)


@pytest.mark.parametrize("rank", [2, 4, 32, 256])
def test_at_a_power_of_two_it_is_the_hadamard_matrix_behind_random_signs(rank: int) -> None:
    rotation = latent_rotation(rank, "hadamard", 0, NAME).numpy()
    signs = rotation @ hadamard(rank).T / rank**0.5
    np.testing.assert_allclose(np.abs(signs), np.eye(rank), rtol=0, atol=1e-13)
    assert rank < 32 or 0 < (signs.diagonal() < 0).sum() < rank


@pytest.mark.parametrize(("rank", "order"), [(6, 2), (12, 4), (96, 32), (160, 32)])
def test_at_other_ranks_it_is_the_hadamard_matrix_times_a_rotation_of_the_odd_rest(
    rank: int, order: int
) -> None:
    rest = rank // order
    rotation = latent_rotation(rank, "hadamard", 0, NAME).numpy()
    blocks = rotation.reshape(order, rest, order, rest).transpose(0, 2, 1, 3)
    # A row's sign is the same in all of its blocks, so the first block of the row takes it away.
    odd = blocks * hadamard(order)[:, :, None, None]
    np.testing.assert_allclose(odd, np.broadcast_to(odd[:, :1], odd.shape), rtol=0, atol=1e-13)
    scaled = odd[:, 0] * order**0.5
    np.testing.assert_allclose(
        scaled @ scaled.transpose(0, 2, 1), np.broadcast_to(np.eye(rest), scaled.shape), atol=1e-13
    )
    same = np.abs(odd)
    np.testing.assert_allclose(same, np.broadcast_to(same[0, 0], same.shape), rtol=0, atol=1e-13)


def test_a_hadamard_rotation_gives_every_latent_channel_the_same_energy() -> None:
    """What it is for: diag(Rᵀ Λ R) = mean(Λ), however uneven Λ was."""
    energy = torch.logspace(0, 6, 64, dtype=torch.float64)
    rotation = latent_rotation(64, "hadamard", 0, NAME)
    after = (rotation.T @ energy.diag() @ rotation).diagonal()
    torch.testing.assert_close(after, energy.mean().expand(64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_odd_ranks_are_rotated_uniformly(kind: Kind) -> None:
    """Moments of the uniform law on O(n): E R = 0, E R_ij² = 1/n, E (tr R)² = 1, E det R = 0."""
    drawn = np.stack([latent_rotation(3, kind, seed, NAME).numpy() for seed in range(2000)])
    traces, determinants = np.trace(drawn, axis1=1, axis2=2), np.linalg.det(drawn)
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.07)
    np.testing.assert_allclose((drawn**2).mean(0), 1 / 3, atol=0.04)
    assert (traces**2).mean() == pytest.approx(1, abs=0.15)
    assert determinants.mean() == pytest.approx(0, abs=0.12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_arguments_give_the_same_rotation_whatever_was_drawn_before(kind: Kind) -> None:
    state = torch.random.get_rng_state()
    one = latent_rotation(24, kind, 7, NAME)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(latent_rotation(24, kind, 7, NAME), one)


def test_the_draw_is_the_same_in_every_process() -> None:
    """Known signs of a rank-8 rotation: nothing in them hangs on Python's own hash."""
    rotation = latent_rotation(8, "hadamard", 0, NAME)
    assert (rotation[:, 0] * 8**0.5).round().int().tolist() == [-1, -1, -1, -1, -1, 1, 1, -1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [7, 24, 32])
def test_layers_and_seeds_have_rotations_of_their_own(rank: int, kind: Kind) -> None:
    names = [NAME, NAME.replace("q_proj", "k_proj"), NAME.replace("0", "10")]
    drawn = [latent_rotation(rank, kind, seed, name) for seed in (-1, 0, 1) for name in names]
    for index, one in enumerate(drawn):
        assert all((one - other).abs().max() > 0.1 for other in drawn[:index])


@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("rotation", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("kind", HARD)
def test_rotated_factors_have_the_same_product_and_singular_values(
    kind: str, shape: tuple[int, int], rotation: Kind, power: float
) -> None:
    case = HARD[kind](random_case(shape))
    rank = max(2 * min(shape) // 3, 1)
    for scaling in (identity_scaling(), whitening_scaling(case.gram, 1e-6)):
        factors = truncate(spectrum(case.weight, scaling), rank, power)
        found = rotate(factors, latent_rotation(rank, rotation, 0, NAME))
        assert (found.A.shape, found.B.shape) == (factors.A.shape, factors.B.shape)
        size = float(factors.A.norm() * factors.B.norm())
        np.testing.assert_allclose(
            found.product().numpy(), factors.product().numpy(), rtol=0, atol=1e-14 * size + 1e-300
        )
        for one, two in ((factors.A, found.A), (factors.B, found.B)):
            expected = np.linalg.svd(one.numpy(), compute_uv=False)
            values = np.linalg.svd(two.numpy(), compute_uv=False)
            np.testing.assert_allclose(values, expected, rtol=0, atol=1e-13 * expected[0])


def test_with_no_singular_values_in_it_the_left_factor_stays_orthonormal() -> None:
    factors = truncate(spectrum(random_case((24, 40)).weight, identity_scaling()), 12, 0.0)
    left = rotate(factors, latent_rotation(12, "hadamard", 0, NAME)).A
    torch.testing.assert_close(left.T @ left, torch.eye(12).double(), rtol=0, atol=1e-13)
