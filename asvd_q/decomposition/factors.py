"""From a spectrum and a rank to the two factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asvd_q.decomposition.spectrum import Spectrum
from asvd_q.errors import RankError

__all__ = ["Factors", "relative_output_error", "truncate"]


@dataclass(frozen=True)
class Factors:
    """Ŵ = A B: A (out, rank) and B (rank, in), float64."""

    A: Tensor
    B: Tensor

    def product(self) -> Tensor:
        """Ŵ (out, in)."""
        return self.A @ self.B


def truncate(spectrum: Spectrum, rank: int, power: float = 0.5) -> Factors:
    """Keep the `rank` leading components of W S.

    Ŵ_r = U_r U_rᵀ W, in which S cancels: a dead channel or a tiny scale is harmless. Components
    beyond the numerical rank are zero in both factors, so the shapes are those asked for.

    Args:
        spectrum: of W (out, in).
        rank: 1 ≤ rank ≤ min(out, in).
        power: β of Σ in A, 0 … 1: ½ puts √Σ into both factors (ASVD), 1 all into A, 0 into B.

    Returns:
        A = U_r Σ_r^β and B = Σ_r^−β U_rᵀ W.

    Raises:
        RankError: rank outside the range above.

    Source: ASVD, arXiv 2312.05821, section 3; Eckart–Young for the error.
    """
    if not 1 <= rank <= spectrum.values.numel():
        raise RankError(
            f"{spectrum.name}: rank {rank} is outside 1 … {spectrum.values.numel()}, the smaller "
            f"side of its shape {tuple(spectrum.weight.shape)}"
        )
    values = spectrum.values[:rank]
    alive = values > 0
    scale = torch.where(alive, values, 1.0) ** power
    left = spectrum.left[:, :rank] * alive
    return Factors(A=left * scale, B=(left.T @ spectrum.weight) / scale[:, None])


def relative_output_error(weight: Tensor, approximation: Tensor, gram: Tensor | None) -> float:
    """‖(Ŵ − W) X‖ / ‖W X‖ over the tokens that G was collected from.

    Args:
        weight, approximation: (out, in).
        gram: (in, in), E[x xᵀ]; None measures the weights themselves, as if G = I.
    """
    weight = weight.double()
    difference = approximation.double() - weight
    error, total = _energy(difference, gram), _energy(weight, gram)
    return float((error / total).sqrt()) if total > 0 else 0.0


def _energy(weight: Tensor, gram: Tensor | None) -> Tensor:
    if gram is None:
        return weight.square().sum()
    return ((weight @ gram) * weight).sum().clamp(min=0)
