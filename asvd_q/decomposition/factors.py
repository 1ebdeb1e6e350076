"""From a spectrum and a rank to the two factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asvd_q.decomposition.spectrum import Spectrum
from asvd_q.errors import RankError
from asvd_q.recipe.decompose import SigmaSplit

__all__ = ["Factors", "relative_output_error", "truncate"]

_EXPONENT: dict[SigmaSplit, float] = {"both": 0.5, "u": 1.0, "v": 0.0}
"""Power of Σ that goes into A; the rest goes into B."""


@dataclass(frozen=True)
class Factors:
    """Ŵ = A B: A (out, rank) and B (rank, in), float64."""

    A: Tensor
    B: Tensor

    def product(self) -> Tensor:
        """Ŵ (out, in)."""
        return self.A @ self.B


def truncate(spectrum: Spectrum, rank: int, sigma_split: SigmaSplit = "both") -> Factors:
    """Keep the `rank` leading components of W S.

    Ŵ_r = U_r U_rᵀ W, in which S cancels: a dead channel or a tiny scale is harmless. Components
    beyond the numerical rank are zero in both factors, so the shapes are those asked for.

    Args:
        spectrum: of W (out, in).
        rank: 1 ≤ rank ≤ min(out, in).
        sigma_split: where Σ goes: √Σ into both factors (ASVD), all into A ("u") or into B ("v").

    Returns:
        A = U_r Σ_r^p and B = Σ_r^−p U_rᵀ W, with p = ½, 1 or 0.

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
    power = torch.where(alive, values, 1.0) ** _EXPONENT[sigma_split]
    left = spectrum.left[:, :rank] * alive
    return Factors(A=left * power, B=(left.T @ spectrum.weight) / power[:, None])


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
