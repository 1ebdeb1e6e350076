"""How GPTQ passes the error of each column on to the columns after it.

With H = U D Uᵀ, U unit upper triangular, the output error of Ŵ is
tr((W − Ŵ) H (W − Ŵ)ᵀ) = Σ_k D_k |w'_k − ŵ_k|², where w'_k = w_k + Σ_{i<k} (w_i − ŵ_i) U_ik
depends on earlier columns alone. Rounding w'_k column after column is GPTQ: the same codes as
with the Cholesky factor of the inverse, without an inverse.

Source: QuIP, arXiv 2307.13304, section 3 (LDLQ) and theorem 6 (its equality with GPTQ).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Feedback", "factorise"]

_LARGEST_DAMPING = 1.0


@dataclass(frozen=True)
class Feedback:
    """H = U D Uᵀ.

    Attributes:
        upper: float64 (in, in), unit upper triangular. What an error in column i adds to column
            k is U_ik.
        cost: float64 (in,), D: the output error that a unit error in a column leaves after all
            later columns have made up for what they can.
        damping: the relative damping that was used in the end.
        retries: how often the damping had to be raised.
    """

    upper: Tensor
    cost: Tensor
    damping: float
    retries: int = 0


def factorise(gram: Tensor, damping: float) -> Feedback:
    """Factorise H = G + λI, λ = damping · (mean of the diagonal's entries that are not zero).

    λ is raised tenfold until the Cholesky factorisation succeeds.

    Args:
        gram: float64 (in, in), symmetric, columns in the order in which they will be quantized.

    Raises:
        ValueError: no success up to λ = mean of the diagonal, or to the given λ where that is
            larger.
    """
    diagonal = gram.diagonal()
    # The order is reversed before and after: that makes an upper factor of the lower one.
    hessian = gram.flip(0, 1).div_(diagonal[diagonal > 0].mean())
    added, retries = 0.0, 0
    largest = max(damping, _LARGEST_DAMPING)
    while damping <= largest:
        hessian.diagonal().add_(damping - added)
        added = damping
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            upper = lower.flip(0, 1)
            roots = upper.diagonal().clone()
            return Feedback(upper.div_(roots), roots.square(), damping, retries)
        damping, retries = damping * 10, retries + 1
    raise ValueError("the Gram matrix has no Cholesky factorisation at any damping")
