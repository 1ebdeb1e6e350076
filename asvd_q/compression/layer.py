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
    """Carry out one layer's plan.

    Factors that stay in floating point are rounded to `float_type` before their error is taken;
    factors that are quantized go to the quantizer in float64.

    Args:
        weight: W (out, in), in the type it is stored in.
        section: how to decompose; needed when the plan says factors.
        quantization: what goes beyond the plan's settings of single matrices: the refit of dense
            layers, and what A is told of B's codes.
        statistics: of the layer's site. None measures errors on the weights alone.
        fisher: (in,), see `make_scaling`.
        seed: of all that is random here.

    Returns:
        What goes into the store. A layer whose decomposition fails stays as it was, and its
        record says why.

    Raises:
        NumericsError: NaN or infinity in the weight or the statistics.
    """
    if not torch.isfinite(weight).all():
        raise NumericsError(f"{plan.name}: the weight holds NaN or infinity")
    gram = None if statistics is None else statistics.gram
    quantized = any(spec is not None for spec in plan.quantization.values())
    errors: dict[str, float] = {}
    notes: list[str] = []
    stored: dict[Slot, StoredWeight]
    try:
        if plan.rank is None:
            target = _dense_target(weight.to(TORCH_TYPES[float_type]), quantization, statistics)
            stored = {"weight": _quantized(target, plan, "weight", float_type, gram)}
        else:
            assert section is not None
            found = decompose(weight, plan, section, statistics, fisher, seed)
            notes.extend(found.notes)
            if quantized:
                errors["decompose"] = _error(weight, found.factors.product(), statistics)
            aware = FULLY_AWARE if quantization is None else quantization.factors.aware
            stored = _quantized_factors(found, plan, float_type, gram, aware)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        reason = f"its decomposition failed: {first_line(error)}"
        return keep_layer(weight, plan, float_type, reason)
    except (NumericsError, ValueError) as error:
        raise NumericsError(f"{plan.name}: {error}") from error
    for slot, part in stored.items():
        notes.extend(f"{slot}: {note}" for note in part.notes)
    if quantized or plan.rank is not None:
        stage = "quantize" if quantized else "decompose"
        errors[stage] = _error(weight, _product(stored).to(weight.device), statistics)
    return StoredLayer(
        record=_record(weight, plan, float_type, stored, errors, statistics is not None, notes),
        weights=stored,
    )


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
        return quantize(matrix.cpu(), spec, None if gram is None else gram.cpu())
    rounded = matrix.cpu().to(TORCH_TYPES[float_type])
    if not torch.isfinite(rounded).all():
        raise ValueError(f"a value does not fit into {float_type}; set model.dtype to a wider type")
    return FloatWeight(rounded)


def _product(stored: dict[Slot, StoredWeight]) -> Tensor:
    """Ŵ (out, in) as the stored tensors give it."""
    if "weight" in stored:
        return stored["weight"].dequantize().double()
    return stored["A"].dequantize().double() @ stored["B"].dequantize().double()


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
