"""One layer's codes and the correction beside them, as the recipe's `correct` section says."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from asvd_q.compression.matrices import (
    stored_factors,
    stored_left,
    stored_matrix,
    stored_product,
)
from asvd_q.decomposition import (
    CorrectionTarget,
    Factors,
    Spectrum,
    latent_rotation,
    projected_gram,
    refit_left,
    rotate,
    truncate,
)
from asvd_q.plan import FloatType, LayerPlan, Slot
from asvd_q.quantization import StoredWeight
from asvd_q.recipe import FULLY_AWARE, CorrectSection, FactorAware

__all__ = ["Corrected", "corrected"]

_POWER = 0.0
"""Of the singular values in A: its columns stay orthonormal, B holds them all."""

_ROTATION = "correction"
"""Seeds the rotation in a layer's place: layers that share B must share its rotation."""

_PAIR: tuple[Slot, ...] = ("B", "A")

Stored = dict[Slot, StoredWeight]


@dataclass(frozen=True)
class Corrected:
    """What came of one layer.

    Attributes:
        stored: codes Q, and A B beside them, all as they are stored.
        values: singular values (k,) of what A B was cut from; None where it is no truncation.
    """

    stored: Stored
    values: Tensor | None


def corrected(
    target: CorrectionTarget,
    plan: LayerPlan,
    section: CorrectSection,
    seed: int,
    *,
    float_type: FloatType,
    aware: FactorAware = FULLY_AWARE,
    base: StoredWeight | None = None,
) -> Corrected:
    """Codes Q, and A B beside them, W ≈ Q + A B, all as they are stored.

    Args:
        target: W (out, in) and the Gram matrix of its input. What it has found out serves other
            ranks and settings of the same layer.
        plan: of a layer in form correction.
        section: the method; ranks are the plan's.
        seed: of the rotation, together with the rank.
        float_type: of factors that are not quantized.
        aware: what A is told of B's codes.
        base: W as it is quantized alone, which spares `after` its quantization; the other
            methods choose codes of their own.

    Raises:
        NumericsError, ValueError, LinAlgError: a matrix cannot be quantized or decomposed.
    """
    job = _Job(target, plan, section, seed, float_type, aware)
    match section.method:
        case "after":
            return job.after(base)
        case "inside":
            return job.inside()
        case "alternate":
            return job.alternate()


@dataclass(frozen=True)
class _Job:
    target: CorrectionTarget
    plan: LayerPlan
    section: CorrectSection
    seed: int
    float_type: FloatType
    aware: FactorAware

    def after(self, base: StoredWeight | None) -> Corrected:
        codes = self._codes(self.target.weight, None) if base is None else base
        residual = self._residual(codes)
        return Corrected(self._beside(codes, self._factors(residual)), residual.values)

    def inside(self) -> Corrected:
        basis = self.target.directions[: self._rank]
        factors = self._rotated(Factors(A=self.target.weight.double() @ basis.T, B=basis))
        right = stored_matrix(factors.B, self.plan, "B", self.float_type, self.target.gram)
        stored_basis = right.dequantize().double().to(basis.device)
        codes = self._around(self._fitted(stored_basis, self.target.weight.double()))
        residual = self.target.residual(codes.dequantize())
        left = stored_left(
            self._fitted(factors.B, residual),
            right,
            residual,
            self.plan,
            self.float_type,
            self.target.gram,
            self.aware,
        )
        stored: Stored = {"weight": codes, "B": right, "A": left}
        if self._rounded:
            stored = self._lower(stored, self._closed(stored))[0]
        return Corrected(stored, None)

    def alternate(self) -> Corrected:
        """Rounds of codes for W − A B and of A B for W − Q, while the stored error falls."""
        factors = self._factors(self.target.spectrum)
        best = Corrected({}, None)
        lowest = math.inf
        closing = self._rounded
        for _ in range(self.section.rounds):
            codes = self._around(factors)
            residual = self._residual(codes)
            factors = self._factors(residual)
            stored = self._beside(codes, factors)
            if closing:  # as long as it helps
                stored, error, closing = self._lower(stored, self._closed(stored))
            else:
                error = self._error(stored)
            if best.stored and not error < lowest:
                break
            best, lowest = Corrected(stored, residual.values), error
        return best

    @property
    def _rounded(self) -> bool:
        """Whether A B is not stored as it was found, but in codes."""
        return any(self.plan.quantization[slot] is not None for slot in _PAIR)

    def _closed(self, stored: Stored) -> Stored:
        """Codes for what A B leaves as it is stored: they make up for its own rounding.

        Codes of few bits in A and B lose more than those of W do, where the inputs are largest.
        """
        pair: Stored = {slot: stored[slot] for slot in _PAIR}
        product = stored_product(pair).to(self.target.weight.device)
        return {"weight": self._codes(self.target.weight.double() - product, None), **pair}

    def _lower(self, one: Stored, other: Stored) -> tuple[Stored, float, bool]:
        """Whichever has the lower error, that error, and whether it is the other."""
        first, second = self._error(one), self._error(other)
        return (other, second, True) if second < first else (one, first, False)

    def _error(self, stored: Stored) -> float:
        return self.target.error(stored_product(stored))

    @property
    def _rank(self) -> int:
        assert self.plan.rank is not None
        return self.plan.rank

    def _residual(self, codes: StoredWeight) -> Spectrum:
        return self.target.residual_spectrum(codes.dequantize())

    def _factors(self, spectrum: Spectrum) -> Factors:
        return self._rotated(truncate(spectrum, self._rank, _POWER))

    def _rotated(self, factors: Factors) -> Factors:
        if self.section.rotation == "none":
            return factors
        return rotate(
            factors, latent_rotation(self._rank, self.section.rotation, self.seed, _ROTATION)
        )

    def _fitted(self, basis: Tensor, matrix: Tensor) -> Factors:
        """The best A beside a B for a matrix (out, in)."""
        return refit_left(Factors(A=matrix @ basis.T, B=basis), matrix, self.target.gram)

    def _around(self, factors: Factors) -> StoredWeight:
        """Codes of what A B leaves of W, where errors that B can see cost nothing.

        Taking A B off first changes nothing of that cost, and makes the groups' ranges narrower.
        """
        return self._codes(self.target.weight.double() - factors.product(), factors.B)

    def _codes(self, matrix: Tensor, basis: Tensor | None) -> StoredWeight:
        spec = self.plan.quantization["weight"]
        assert spec is not None
        gram = self.target.gram
        if basis is not None:
            gram = projected_gram(gram, basis, spec.damping or 0.0)
        return stored_matrix(matrix, self.plan, "weight", self.float_type, gram)

    def _beside(self, codes: StoredWeight, factors: Factors) -> Stored:
        residual = self.target.residual(codes.dequantize())
        pair = stored_factors(
            factors, residual, self.plan, self.float_type, self.target.gram, self.aware
        )
        return {"weight": codes, **pair}
