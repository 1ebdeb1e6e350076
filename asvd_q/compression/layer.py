"""One layer: weight in, stored tensors and record out. A pure function of its arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from asvd_q.compression.decompose import Decomposition, decompose
from asvd_q.decomposition import (
    Factors,
    refit_left,
    refit_target,
    refitted_output_error,
    relative_output_error,
)
from asvd_q.errors import NumericsError, first_line
from asvd_q.plan import FloatType, LayerPlan, Slot, store_bytes
from asvd_q.quantization import TORCH_TYPES, FloatWeight, StoredWeight, quantize
from asvd_q.recipe import FULLY_AWARE, DecomposeSection, FactorAware, QuantizeSection
from asvd_q.records import LayerRecord
from asvd_q.statistics.collectors import SiteStatistics
from asvd_q.store import StoredLayer

__all__ = ["compress_layer", "keep_layer"]

_FAILURES = (NumericsError, ValueError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
"""What a quantizer raises when it cannot do a matrix."""


def compress_layer(
    weight: Tensor,
    plan: LayerPlan,
    float_type: FloatType,
    *,
    section: DecomposeSection | None = None,
    quantization: QuantizeSection | None = None,
    statistics: SiteStatistics | None = None,
    fisher: Tensor | None = None,
    seed: int = 0,
) -> StoredLayer:
    """Carry out one layer's plan, as far as it can be carried out.

    Factors that stay in floating point are rounded to `float_type` before their error is taken;
    factors that are quantized go to the quantizer in float64.

    Args:
        weight: W (out, in), in the type it is stored in.
        section: how to decompose; needed when the plan says factors.
        quantization: what goes beyond the plan's settings of single matrices: the refit of dense
            layers, what A is told of B's codes, and the bound `max_error` on
            ‖(Ŵ_q − Ŵ) x‖ / ‖W x‖, Ŵ being the layer before it is quantized: W, what it was refitted
            to, or the product of the exact factors, also where A is fitted to B's codes.
        statistics: of the layer's site. None measures errors on the weights alone.
        fisher: (in,), see `make_scaling`.
        seed: of all that is random here.

    Returns:
        What goes into the store. A layer whose decomposition fails stays as it was; one whose
        quantization fails, or adds more error than the bound, keeps its form in floating point,
        both factors together. Its record says why.

    Raises:
        NumericsError: NaN or infinity in the weight or the statistics, or a value that
            `float_type` cannot hold.
        MissingExtraError: the package that is to quantize is not installed.
    """
    _require_finite(weight, plan, float_type, statistics)
    found: Decomposition | None = None
    if plan.rank is not None:
        assert section is not None
        try:
            found = decompose(weight, plan, section, statistics, fisher, seed)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            failure = f"its decomposition failed: {first_line(error)}"
            return keep_layer(weight, plan, float_type, failure)
        except (NumericsError, ValueError) as error:
            raise NumericsError(f"{plan.name}: {error}") from error
    reason = plan.reason
    if _is_quantized(plan):
        try:
            return _stored(weight, found, plan, float_type, statistics, quantization)
        except _FAILURES as error:
            reason = f"its quantization failed: {first_line(error)}"
    if found is None:
        return keep_layer(weight, plan, float_type, reason)
    in_floats = dict.fromkeys(plan.quantization)
    plan = plan.model_copy(update={"quantization": in_floats, "reason": reason})
    try:
        return _stored(weight, found, plan, float_type, statistics)
    except ValueError as error:
        raise NumericsError(f"{plan.name}: {error}") from error


def keep_layer(
    weight: Tensor, plan: LayerPlan, float_type: FloatType, reason: str | None
) -> StoredLayer:
    """A layer left as it was: its record, and its weight in the store's float type."""
    kept = plan.model_copy(
        update={"form": "dense", "rank": None, "quantization": {"weight": None}, "reason": reason}
    )
    stored: dict[Slot, StoredWeight] = {"weight": FloatWeight(weight.to(TORCH_TYPES[float_type]))}
    return StoredLayer(_record(weight, kept, float_type, stored, {}, True, []), stored)


def _dense_target(
    weight: Tensor, quantization: QuantizeSection | None, statistics: SiteStatistics | None
) -> Tensor:
    """What a dense layer's codes are to approximate: W, or what it was refitted to."""
    dense = None if statistics is None else statistics.dense
    if quantization is None or not quantization.refit or dense is None:
        return weight
    assert statistics is not None
    return refit_target(weight, statistics.gram, dense.cross, quantization.refit_damping)


def _stored(
    weight: Tensor,
    found: Decomposition | None,
    plan: LayerPlan,
    float_type: FloatType,
    statistics: SiteStatistics | None,
    quantization: QuantizeSection | None = None,
) -> StoredLayer:
    """A dense layer or found factors, quantized as the plan says, and measured.

    Args:
        found: None for a dense layer.

    Raises:
        NumericsError, ValueError, LinAlgError: that cannot be done, or not within the bound.
    """
    gram = None if statistics is None else statistics.gram
    quantized = _is_quantized(plan)
    errors: dict[str, float] = {}
    notes: list[str] = []
    stored: dict[Slot, StoredWeight]
    if found is None:
        before = _dense_target(weight.to(TORCH_TYPES[float_type]), quantization, statistics)
        stored = {"weight": _quantized(before, plan, "weight", float_type, gram)}
    else:
        before = found.factors.product()
        notes.extend(found.notes)
        aware = FULLY_AWARE if quantization is None else quantization.factors.aware
        stored = _quantized_factors(found, plan, float_type, gram, aware)
    product = _product(stored).to(weight.device)
    if quantized:
        bound = None if quantization is None else quantization.max_error
        _require_close(weight, before, product, gram, bound)
        if found is not None:
            errors["decompose"] = _error(weight, before, statistics)
    errors["quantize" if quantized else "decompose"] = _error(weight, product, statistics)
    for slot, part in stored.items():
        notes.extend(f"{slot}: {note}" for note in part.notes)
    return StoredLayer(
        record=_record(weight, plan, float_type, stored, errors, statistics is not None, notes),
        weights=stored,
    )


def _is_quantized(plan: LayerPlan) -> bool:
    return any(spec is not None for spec in plan.quantization.values())


def _require_finite(
    weight: Tensor, plan: LayerPlan, float_type: FloatType, statistics: SiteStatistics | None
) -> None:
    """What is wrong before anything is done to a layer is no failure of what is done to it."""
    if not torch.isfinite(weight).all():
        raise NumericsError(f"{plan.name}: the weight holds NaN or infinity")
    if statistics is not None and not torch.isfinite(statistics.gram).all():
        raise NumericsError(f"{plan.name}: the Gram matrix of its input holds NaN or infinity")
    if plan.rank is None and not torch.isfinite(weight.to(TORCH_TYPES[float_type])).all():
        raise NumericsError(f"{plan.name}: {_too_wide(float_type)}")


def _require_close(
    weight: Tensor, before: Tensor, after: Tensor, gram: Tensor | None, max_error: float | None
) -> None:
    """Raises NumericsError when codes are farther from what they stand for than the bound."""
    if max_error is None:
        return
    added = relative_output_error(weight, weight.double() + (after - before), gram)
    if not added <= max_error:
        raise NumericsError(
            f"it adds a relative output error of {added:.4g}, and quantize.max_error is "
            f"{max_error:g}"
        )


def _quantized_factors(
    found: Decomposition,
    plan: LayerPlan,
    float_type: FloatType,
    gram: Tensor | None,
    factor_aware: FactorAware,
) -> dict[Slot, StoredWeight]:
    """B first, then A: fitted to the stored B, and quantized for what that makes of the inputs."""
    factors = found.factors
    right = _quantized(factors.B, plan, "B", float_type, gram)
    left, latent = factors.A, None
    if gram is not None:
        rounded = right.dequantize().double().to(gram.device)
        if factor_aware.refit and plan.quantization["B"] is not None:
            left = refit_left(Factors(left, rounded), found.target, gram).A
        if plan.quantization["A"] is not None:
            basis = rounded if factor_aware.latent_gram else factors.B
            latent = basis @ gram @ basis.T
    return {"B": right, "A": _quantized(left, plan, "A", float_type, latent)}


def _error(weight: Tensor, approximation: Tensor, statistics: SiteStatistics | None) -> float:
    """Relative output error; against the dense model's outputs where its inputs are known."""
    if statistics is None:
        return relative_output_error(weight, approximation, None)
    if statistics.dense is None:
        return relative_output_error(weight, approximation, statistics.gram)
    return refitted_output_error(
        weight, approximation, statistics.dense.gram, statistics.gram, statistics.dense.cross
    )


def _quantized(
    matrix: Tensor, plan: LayerPlan, slot: Slot, float_type: FloatType, gram: Tensor | None
) -> StoredWeight:
    """One matrix as it is stored; `gram` is of its own input."""
    spec = plan.quantization[slot]
    if spec is not None:
        stored = quantize(matrix.cpu(), spec, None if gram is None else gram.cpu())
        if not torch.isfinite(stored.dequantize()).all():
            raise NumericsError("its codes stand for NaN or infinity")
        return stored
    rounded = matrix.cpu().to(TORCH_TYPES[float_type])
    if not torch.isfinite(rounded).all():
        raise ValueError(_too_wide(float_type))
    return FloatWeight(rounded)


def _too_wide(float_type: FloatType) -> str:
    return f"a value does not fit into {float_type}; set model.dtype to a wider type"


def _product(stored: dict[Slot, StoredWeight]) -> Tensor:
    """Ŵ (out, in) as the stored tensors give it."""
    parts = {slot: part.dequantize().double() for slot, part in stored.items()}
    if "A" not in parts:
        return parts["weight"]
    product = parts["A"] @ parts["B"]
    return product + parts["weight"] if "weight" in parts else product


def _record(
    weight: Tensor,
    plan: LayerPlan,
    float_type: FloatType,
    stored: dict[Slot, StoredWeight],
    errors: dict[str, float],
    from_outputs: bool,
    notes: list[str],
) -> LayerRecord:
    return LayerRecord(
        name=plan.name,
        kind=plan.kind,
        block=plan.block,
        shape=plan.shape,
        transposed=plan.transposed,
        form=plan.form,
        rank=plan.rank,
        reason=plan.reason,
        quantization=plan.quantization,
        bytes_before=store_bytes(plan.shape, None, float_type),
        bytes_after=sum(part.nbytes for part in stored.values()),
        errors=errors,
        error_basis="output" if from_outputs else "weight",
        notes=tuple(notes),
    )
