"""The scaling matrix S of activation-aware SVD: W S is what gets decomposed.

Diagonal: ASVD, arXiv 2312.05821, section 3 (S_jj = stat_j^α). Whitening: SVD-LLM, arXiv
2403.07378 (S Sᵀ = G), which makes truncation minimise the layer's output error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asvd_q.errors import NumericsError

__all__ = ["Scaling", "diagonal_scaling", "identity_scaling", "whitening_scaling"]

_SMALLEST_DAMPING = 1e-12
_LARGEST_DAMPING = 1.0


@dataclass(frozen=True)
class Scaling:
    """S, as a vector or as a matrix, float64.

    Attributes:
        matrix: (in,) for a diagonal S, (in, in) for a full one; None for the identity.
        damping: the relative damping that was used in the end.
        retries: how often the damping had to be raised.
        unit: what S was divided by; unit · S is in the units of the activations. 1 where the
            scaling has none of its own.
    """

    matrix: Tensor | None
    damping: float = 0.0
    retries: int = 0
    unit: float = 1.0

    @property
    def notes(self) -> tuple[str, ...]:
        """What the layer's record has to say of it."""
        if not self.retries:
            return ()
        return (f"damping raised {self.retries} times, to {self.damping:g}",)

    def apply(self, weight: Tensor) -> Tensor:
        """W S in float64, (out, in)."""
        weight = weight.double()
        if self.matrix is None:
            return weight
        return weight * self.matrix if self.matrix.ndim == 1 else weight @ self.matrix


def identity_scaling() -> Scaling:
    """S = I: plain SVD of the weight."""
    return Scaling(None)


def diagonal_scaling(statistic: Tensor, alpha: float, damping: float) -> Scaling:
    """S_jj = (stat_j + damping · mean(stat))^α, then normalised to mean square 1.

    Args:
        statistic: (in,), not negative: mean or largest magnitude, rms or Fisher information of
            each input channel.
        alpha: 0 turns the scaling off; ASVD's own choice is 0.5.
        damping: relative to the statistic's mean, so that dead channels keep S invertible
            whatever the units are.

    Raises:
        NumericsError: NaN, infinity or a negative number in the statistic.
    """
    statistic = statistic.double()
    if not torch.isfinite(statistic).all() or (statistic < 0).any():
        raise NumericsError("the statistic holds NaN, infinity or a negative number")
    mean = statistic.mean()
    if mean == 0:  # nothing ever reaches this layer: every scaling is as good
        return Scaling(torch.ones_like(statistic), damping)
    scale = (statistic / mean + damping) ** alpha
    return Scaling(scale / scale.square().mean().sqrt(), damping)


def whitening_scaling(gram: Tensor, damping: float) -> Scaling:
    """Lower triangular S with S Sᵀ = (G + λI) / mean(diag G), λ = damping · mean(diag G).

    λ is raised tenfold until the Cholesky factorisation succeeds.

    Args:
        gram: (in, in), E[x xᵀ].

    Raises:
        NumericsError: NaN or infinity in G, or no success up to λ = mean(diag G), or to the
            given λ where that is larger.
    """
    gram = gram.double()
    if not torch.isfinite(gram).all():
        raise NumericsError("the Gram matrix holds NaN or infinity")
    mean = gram.diagonal().mean()
    if mean <= 0:
        return Scaling(torch.eye(gram.shape[0], dtype=torch.float64, device=gram.device), damping)
    gram = (gram + gram.T) / (2 * mean)
    retries = 0
    largest = max(damping, _LARGEST_DAMPING)
    while damping <= largest:
        damped = gram.clone()
        damped.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return Scaling(factor, damping, retries, unit=float(mean.sqrt()))
        damping, retries = max(damping * 10, _SMALLEST_DAMPING), retries + 1
    raise NumericsError("the Gram matrix has no Cholesky factorisation at any damping")
