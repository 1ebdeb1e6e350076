"""One eigendecomposition per layer that serves every rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asvd_q.decomposition.scaling import Scaling
from asvd_q.errors import NumericsError

__all__ = ["Spectrum", "spectrum"]


@dataclass(frozen=True)
class Spectrum:
    """Left singular vectors and singular values of W S, and W itself.

    Attributes:
        name: of the layer, for messages.
        weight: W (out, in), float64.
        left: U (out, k), k = min(out, in), orthonormal columns, float64.
        values: Σ (k,), descending, float64; exactly zero beyond the numerical rank.
        unit: of the scaling; values of different layers compare when multiplied by it.
    """

    name: str
    weight: Tensor
    left: Tensor
    values: Tensor
    unit: float = 1.0

    @property
    def numerical_rank(self) -> int:
        """Number of singular values that are above rounding noise."""
        return int((self.values > 0).sum())

    def tail(self) -> Tensor:
        """Squared error ‖(W − Ŵ_r) S‖²_F for r = 0 … k, (k + 1,): Eckart–Young."""
        squares = self.values.square()
        sums = squares.flip(0).cumsum(0).flip(0)
        return torch.cat([sums, sums.new_zeros(1)])


def spectrum(weight: Tensor, scaling: Scaling, name: str = "weight") -> Spectrum:
    """Decompose W S by a symmetric eigendecomposition on the smaller side, in float64.

    Wide or square (out ≤ in): W S Sᵀ Wᵀ = U Σ² Uᵀ. Tall: (W S)ᵀ W S = V Σ² Vᵀ, and U comes from
    the QR decomposition of W S V, so that nothing is ever divided by a small singular value.

    Args:
        weight: (out, in), any floating-point type.
        scaling: S.
        name: of the layer.

    Raises:
        NumericsError: NaN or infinity in the weight.
    """
    if not torch.isfinite(weight).all():
        raise NumericsError(f"{name}: the weight holds NaN or infinity")
    weight = weight.double()
    scaled = scaling.apply(weight)
    largest = scaled.abs().max()
    if largest > 0:  # keeps the squares inside float64's range, whatever the units
        scaled = scaled / largest
    out_features, in_features = weight.shape
    wide = out_features <= in_features
    squares, vectors = torch.linalg.eigh(scaled @ scaled.T if wide else scaled.T @ scaled)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    left = vectors if wide else torch.linalg.qr(scaled @ vectors).Q
    noise = squares[0] * max(out_features, in_features) * torch.finfo(torch.float64).eps
    squares = torch.where(squares > noise, squares, 0.0)
    return Spectrum(
        name=name,
        weight=weight,
        left=left,
        values=squares.sqrt() * largest,
        unit=scaling.unit,
    )
