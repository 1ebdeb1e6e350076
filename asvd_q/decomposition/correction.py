"""A low-rank correction beside coarse codes: W ≈ Q + A B.

For given codes the best A B is the truncated SVD of the residual E = W − Q, weighted by the Gram
matrix G of the inputs. For a given B the best A leaves the error tr(E G' Eᵀ) with the projected
Gram matrix G', so the codes have to be small under G' alone: what they do in the directions that
B reads costs nothing.

Sources: QERA, arXiv 2410.06040, and EoRA, arXiv 2410.21271, for given codes; GPTQ-intrinsic LoRA,
arXiv 2606.01412, for a given B.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from asvd_q.decomposition.factors import relative_output_error
from asvd_q.decomposition.scaling import Scaling, whitening_scaling
from asvd_q.decomposition.spectrum import Spectrum, spectrum

__all__ = ["CorrectionTarget", "leading_directions", "projected_gram"]

_DAMPING = 1e-6
"""Of the weighted SVD, relative to the mean of the diagonal of G."""

_NOISE = 1e-10
"""Below this share of the largest eigenvalue, B G Bᵀ is taken to be singular."""


@dataclass(frozen=True)
class CorrectionTarget:
    """What codes and correction are to approximate together, and what follows from it alone.

    Serves every rank and all codes of a layer; nothing is computed before it is asked for.

    Attributes:
        weight: W (out, in).
        gram: G (in, in), E[x xᵀ].
        name: of the layer, for messages.
    """

    weight: Tensor
    gram: Tensor
    name: str = "weight"

    @cached_property
    def scaling(self) -> Scaling:
        """S with S Sᵀ ∝ G, damped a little."""
        return whitening_scaling(self.gram, _DAMPING)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Of W S: what A B is where there are no codes yet."""
        return spectrum(self.weight, self.scaling, self.name)

    @cached_property
    def directions(self) -> Tensor:
        """`leading_directions` of G."""
        return leading_directions(self.gram)

    def residual(self, codes: Tensor) -> Tensor:
        """E = W − Q (out, in), float64."""
        return self.weight.double() - codes.to(self.weight.device).double()

    def residual_spectrum(self, codes: Tensor) -> Spectrum:
        """Of E S: its truncation is the best A B beside these codes, whatever the rank."""
        return spectrum(self.residual(codes), self.scaling, self.name)

    def error(self, approximation: Tensor) -> float:
        """Relative output error ‖(W − Ŵ) x‖ / ‖W x‖."""
        return relative_output_error(self.weight, approximation.to(self.weight.device), self.gram)


def leading_directions(gram: Tensor) -> Tensor:
    """Eigenvectors of G in rows, the direction of the largest activations first.

    The first r rows are the B under which the projected Gram matrix has the smallest trace. They
    depend on G alone, so layers that read the same input can share them.

    Args:
        gram: (in, in), symmetric.

    Returns:
        float64 (in, in), orthogonal; the largest entry of every row is positive.
    """
    gram = gram.double()
    largest = gram.abs().max()
    vectors: Tensor = torch.linalg.eigh(gram / largest if largest > 0 else gram).eigenvectors
    vectors = vectors.T.flip(0)
    peaks = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return vectors * peaks.sign()


def projected_gram(gram: Tensor, basis: Tensor, damping: float = 0.0) -> Tensor:
    """G' = G − G Bᵀ (B G Bᵀ)⁺ B G, with min over A of ‖(E − A B) x‖² = tr(E G' Eᵀ) for every E.

    G' is singular, and a quantizer's damping is relative to the mean of the diagonal that it is
    given, which the projection has made small. What is missing to the damping of G itself is
    added here, to channels that G does not say are dead: codes would otherwise move more error
    into the directions of B than A can take back.

    Args:
        gram: G (in, in).
        basis: B (rank, in).
        damping: that the quantizer will add, relative to the mean of its diagonal's entries that
            are not zero.

    Returns:
        float64 (in, in), symmetric; rows and columns of dead channels are exactly zero.
    """
    gram = gram.double()
    inputs = basis.double() @ gram
    inverse = torch.linalg.pinv(inputs @ basis.double().T, hermitian=True, rtol=_NOISE)
    projected: Tensor = gram - inputs.T @ inverse @ inputs
    projected = (projected + projected.T) / 2
    diagonal = projected.diagonal()
    diagonal.clamp_(min=0)
    alive = gram.diagonal() > 0
    if alive.any():
        missing = gram.diagonal()[alive].mean() - diagonal[alive].mean()
        diagonal.add_(alive * missing * damping / (1 + damping))
    return projected
