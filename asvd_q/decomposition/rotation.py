"""Orthogonal rotations of the latent: (A R)(Rᵀ B) is the same map as A B.

Once the factors are quantized it matters which of these pairs was taken: a rotation spreads what
single latent channels hold over all of them. It is folded into both factors, so it costs nothing
at run time, neither bytes nor operations.

Source: incoherence processing, QuIP, arXiv 2307.13304; randomised Hadamard matrices, QuIP#,
arXiv 2402.04396, and QuaRot, arXiv 2404.00456.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import torch
from torch import Tensor

from asvd_q.decomposition.factors import Factors

__all__ = ["latent_rotation", "rotate"]


def latent_rotation(rank: int, kind: Literal["hadamard", "random"], seed: int, name: str) -> Tensor:
    """A random orthogonal matrix, the same one for the same arguments.

    hadamard: D (H ⊗ Q) with random signs D, the normalised Hadamard matrix H of the largest power
    of two that divides the rank, and Q, random as below, of the odd rest. The signs come first in
    A R = (A D)(H ⊗ Q) and in Rᵀ B alike: behind H they would only flip what is quantized.
    random: uniform over all orthogonal matrices.

    Args:
        rank: at least 1.
        seed: of the recipe.
        name: of the layer, so that every layer has a rotation of its own.

    Returns:
        R (rank, rank), float64, on the CPU.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    if kind == "random":
        return _uniform(rank, generator)
    order = rank & -rank
    signs = 1.0 - 2.0 * torch.randint(2, (rank, 1), generator=generator).double()
    return signs * torch.kron(_hadamard(order), _uniform(rank // order, generator))


def rotate(factors: Factors, rotation: Tensor) -> Factors:
    """A R and Rᵀ B.

    Args:
        rotation: R (rank, rank), orthogonal.
    """
    rotation = rotation.to(factors.A)
    return Factors(A=factors.A @ rotation, B=rotation.T @ factors.B)


def _uniform(order: int, generator: torch.Generator) -> Tensor:
    """Q of a Gaussian matrix's QR decomposition, made unique by a positive diagonal of R.

    Source: Mezzadri, Notices of the AMS 54 (2007), arXiv math-ph/0609050.
    """
    gaussian = torch.randn(order, order, generator=generator, dtype=torch.float64)
    orthogonal, upper = torch.linalg.qr(gaussian)
    unique: Tensor = orthogonal * upper.diagonal().sign()
    return unique.contiguous()  # torch.kron takes no other


def _hadamard(order: int) -> Tensor:
    """Sylvester's Hadamard matrix of a power of two, divided by its root."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(order)
