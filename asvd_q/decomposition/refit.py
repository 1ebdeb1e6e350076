"""Factors fitted to the dense model's outputs, given the inputs of the compressed model.

A layer behind compressed ones is fed x̂ where the dense model feeds it x. The best low-rank map
from x̂ to W x, min ‖W x − A B x̂‖ over A and B, is a reduced-rank regression: first the best map of
any rank, W* = W C Ĝ⁻¹ with Ĝ = E[x̂ x̂ᵀ] and C = E[x x̂ᵀ], then the truncation of W* weighted by Ĝ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asvd_q.decomposition.factors import Factors
from asvd_q.decomposition.scaling import whitening_scaling

__all__ = ["refit_left", "refit_target", "refitted_output_error"]


def refit_target(weight: Tensor, gram: Tensor, cross: Tensor, damping: float) -> Tensor:
    """W* = W (C + λI) (Ĝ + λI)⁻¹, the map of full rank that best repairs the changed inputs.

    With λ → ∞ it is W; in directions that no token takes, and where nothing changed, it is W too.

    Args:
        weight: W (out, in).
        gram: Ĝ (in, in), E[x̂ x̂ᵀ].
        cross: C (in, in), E[x x̂ᵀ].
        damping: λ relative to mean(diag Ĝ); raised where the factorisation fails.

    Returns:
        float64 (out, in).

    Raises:
        NumericsError: NaN or infinity in Ĝ.

    Source: reduced-rank regression, Izenman, J. Multivariate Anal. 5 (1975).
    """
    weight, gram, cross = weight.double(), gram.double(), cross.double()
    mean = gram.diagonal().mean()
    if mean <= 0:  # nothing reaches the layer any more
        return weight
    scaling = whitening_scaling(gram, damping)
    assert scaling.matrix is not None
    damped = cross / mean
    damped.diagonal().add_(scaling.damping)
    return torch.cholesky_solve(damped.T @ weight.T, scaling.matrix).T


def refit_left(factors: Factors, target: Tensor, gram: Tensor) -> Factors:
    """The A that is best for a given B: A = W* Ĝ Bᵀ (B Ĝ Bᵀ)⁺.

    Changes nothing where the truncation was weighted by Ĝ itself; it is what makes a diagonal
    scaling, or none, choose only the row space.

    Args:
        target: W* (out, in).
        gram: Ĝ (in, in).
    """
    inputs = factors.B @ gram
    covariance = inputs @ factors.B.T
    left = torch.linalg.pinv(covariance, hermitian=True, rtol=1e-10)
    return Factors(A=target @ inputs.T @ left, B=factors.B)


def refitted_output_error(
    weight: Tensor, approximation: Tensor, dense_gram: Tensor, gram: Tensor, cross: Tensor
) -> float:
    """‖W x − Ŵ x̂‖ / ‖W x‖ over the tokens that the matrices were collected from.

    Args:
        weight, approximation: W and Ŵ (out, in).
        dense_gram, gram, cross: E[x xᵀ], E[x̂ x̂ᵀ] and E[x x̂ᵀ], (in, in).
    """
    weight, approximation = weight.double(), approximation.double()
    total = ((weight @ dense_gram) * weight).sum()
    error = (
        total
        - 2 * ((weight @ cross) * approximation).sum()
        + ((approximation @ gram) * approximation).sum()
    )
    return float((error.clamp(min=0) / total).sqrt()) if total > 0 else 0.0
