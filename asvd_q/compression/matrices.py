"""Single matrices and pairs of factors as they are stored: in codes, or rounded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from asvd_q.decomposition import Factors, refit_left
from asvd_q.errors import NumericsError
from asvd_q.plan import FloatType, LayerPlan, Slot
from asvd_q.quantization import TORCH_TYPES, FloatWeight, StoredWeight, quantize
from asvd_q.recipe import FactorAware

__all__ = [
    "FAILURES",
    "stored_factors",
    "stored_left",
    "stored_matrix",
    "stored_product",
    "too_wide",
]


FAILURES = (NumericsError, ValueError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
"""What is raised where a matrix cannot be decomposed or quantized."""


def stored_matrix(
    matrix: Tensor, plan: LayerPlan, slot: Slot, float_type: FloatType, gram: Tensor | None
) -> StoredWeight:
    """One matrix as the plan says for its slot.

    Args:
        matrix: in the shape of the slot.
        float_type: of a matrix that is not quantized.
        gram: of the matrix's own input.

    Raises:
        NumericsError, ValueError: codes that stand for NaN or infinity, a matrix that cannot be
            quantized, or a value that `float_type` cannot hold.
    """
    spec = plan.quantization[slot]
    if spec is not None:
        stored = quantize(matrix.cpu(), spec, None if gram is None else gram.cpu())
        if not torch.isfinite(stored.dequantize()).all():
            raise NumericsError("its codes stand for NaN or infinity")
        return stored
    rounded = matrix.cpu().to(TORCH_TYPES[float_type])
    if not torch.isfinite(rounded).all():
        raise ValueError(too_wide(float_type))
    return FloatWeight(rounded)


def stored_factors(
    factors: Factors,
    target: Tensor,
    plan: LayerPlan,
    float_type: FloatType,
    gram: Tensor | None,
    aware: FactorAware,
) -> dict[Slot, StoredWeight]:
    """B first, then A: fitted to the stored B, and quantized for what that makes of the inputs.

    Args:
        target: what A B approximates, (out, in).
        gram: of the layer's input.
        aware: what A is told of the stored B.

    Raises: as `stored_matrix` does.
    """
    right = stored_matrix(factors.B, plan, "B", float_type, gram)
    return {"B": right, "A": stored_left(factors, right, target, plan, float_type, gram, aware)}


def stored_left(
    factors: Factors,
    right: StoredWeight,
    target: Tensor,
    plan: LayerPlan,
    float_type: FloatType,
    gram: Tensor | None,
    aware: FactorAware,
) -> StoredWeight:
    """A beside a B that is stored already.

    Args:
        right: the stored B; the others are as in `stored_factors`.
    """
    left, latent = factors.A, None
    if gram is not None:
        rounded = right.dequantize().double().to(gram.device)
        if aware.refit and plan.quantization["B"] is not None:
            left = refit_left(Factors(left, rounded), target, gram).A
        if plan.quantization["A"] is not None:
            basis = rounded if aware.latent_gram else factors.B
            latent = basis @ gram @ basis.T
    return stored_matrix(left, plan, "A", float_type, latent)


def stored_product(stored: Mapping[Slot, StoredWeight]) -> Tensor:
    """Ŵ (out, in) as the stored tensors give it, float64, on the CPU."""
    parts = {slot: part.dequantize().double() for slot, part in stored.items()}
    if "A" not in parts:
        return parts["weight"]
    product = parts["A"] @ parts["B"]
    return product + parts["weight"] if "weight" in parts else product


def too_wide(float_type: FloatType) -> str:
    """What is said of a value that a float type cannot hold."""
    return f"a value does not fit into {float_type}; set model.dtype to a wider type"
