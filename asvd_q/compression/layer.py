"""One layer: weight in, stored tensors and record out. A pure function of its arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from asvd_q.decomposition import (
    Factors,
    Scaling,
    refit_left,
    refit_target,
    refitted_output_error,
    relative_output_error,
    spectrum,
    truncate,
)
from asvd_q.decomposition.choice import make_scaling
from asvd_q.errors import NumericsError
from asvd_q.plan import FloatType, LayerPlan, QuantSpec, Slot, store_bytes
from asvd_q.quantization import TORCH_TYPES, FloatWeight, StoredWeight, quantize
from asvd_q.recipe import DecomposeSection
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
    statistics: SiteStatistics | None = None,
    fisher: Tensor | None = None,
) -> StoredLayer:
    """Carry out one layer's plan.

    Factors that stay in floating point are rounded to `float_type` before their error is taken;
    factors that are quantized go to the quantizer in float64.

    Args:
        weight: W (out, in), in the type it is stored in.
        section: how to decompose; needed when the plan says factors.
        statistics: of the layer's site. None measures errors on the weights alone.
        fisher: (in,), see `make_scaling`.

    Returns:
        What goes into the store. A layer whose decomposition fails stays as it was, and its
        record says why.

    Raises:
        NumericsError: NaN or infinity in the weight or the statistics.
    """
    if not torch.isfinite(weight).all():
        raise NumericsError(f"{plan.name}: the weight holds NaN or infinity")
    quantized = any(spec is not None for spec in plan.quantization.values())
    errors: dict[str, float] = {}
    notes: list[str] = []
    matrices: dict[Slot, Tensor] = {"weight": weight.to(TORCH_TYPES[float_type])}
    if plan.rank is not None:
        assert section is not None
        try:
            scaling = make_scaling(section, statistics, fisher)
            factors = _factors(weight, plan, section, scaling, statistics, notes)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            reason = f"its decomposition failed: {str(error).splitlines()[0]}"
            return keep_layer(weight, plan, float_type, reason)
        except NumericsError as error:
            raise NumericsError(f"{plan.name}: {error}") from error
        matrices = {"B": factors.B, "A": factors.A}
        if quantized:
            errors["decompose"] = _error(weight, factors.product(), statistics)
    try:
        stored: dict[Slot, StoredWeight] = {
            slot: _store(matrix, plan.quantization[slot], float_type)
            for slot, matrix in matrices.items()
        }
    except ValueError as error:
        raise NumericsError(f"{plan.name}: {error}") from error
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


def _factors(
    weight: Tensor,
    plan: LayerPlan,
    section: DecomposeSection,
    scaling: Scaling,
    statistics: SiteStatistics | None,
    notes: list[str],
) -> Factors:
    """A and B of the planned rank, refitted where the recipe says so."""
    assert plan.rank is not None
    target = weight
    refit = section.refit and statistics is not None and statistics.dense is not None
    if refit:
        assert statistics is not None
        assert statistics.dense is not None
        target = refit_target(
            weight, statistics.gram, statistics.dense.cross, section.refit_damping
        )
    found = spectrum(target, scaling, plan.name)
    if scaling.retries:
        notes.append(f"damping raised {scaling.retries} times, to {scaling.damping:g}")
    if found.numerical_rank < plan.rank:
        notes.append(
            f"numerical rank {found.numerical_rank} is below the planned {plan.rank}: "
            "the rest of the factors is zero"
        )
    factors = truncate(found, plan.rank, section.sigma_split)
    if refit and section.scaling != "whitening":
        assert statistics is not None
        factors = refit_left(factors, target, statistics.gram)
    return factors


def _error(weight: Tensor, approximation: Tensor, statistics: SiteStatistics | None) -> float:
    """Relative output error; against the dense model's outputs where its inputs are known."""
    if statistics is None:
        return relative_output_error(weight, approximation, None)
    if statistics.dense is None:
        return relative_output_error(weight, approximation, statistics.gram)
    return refitted_output_error(
        weight, approximation, statistics.dense.gram, statistics.gram, statistics.dense.cross
    )


def _store(matrix: Tensor, spec: QuantSpec | None, float_type: FloatType) -> StoredWeight:
    if spec is not None:
        return quantize(matrix.cpu(), spec)
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
