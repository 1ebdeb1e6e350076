"""One layer: weight in, stored tensors and record out. A pure function of its arguments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asvd_q.compression.correct import corrected
from asvd_q.compression.decompose import Decomposition, decompose
from asvd_q.compression.matrices import (
    FAILURES,
    stored_factors,
    stored_matrix,
    stored_product,
    too_wide,
)
from asvd_q.compression.spectra import layer_spectrum
from asvd_q.decomposition import (
    CorrectionTarget,
    refit_target,
    refitted_output_error,
    relative_output_error,
)
from asvd_q.errors import NumericsError, first_line
from asvd_q.plan import FloatType, LayerPlan, Slot, store_bytes
from asvd_q.quantization import TORCH_TYPES, FloatWeight, StoredWeight
from asvd_q.recipe import (
    FULLY_AWARE,
    CorrectSection,
    DecomposeSection,
    FactorAware,
    QuantizeSection,
)
from asvd_q.records import LayerRecord, LayerSpectrum
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
    correction: CorrectSection | None = None,
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
            and corrected layers, what A is told of B's codes, and the bound `max_error` on
            ‖(Ŵ_q − Ŵ) x‖ / ‖W x‖, Ŵ being the layer before it is quantized: W, what it was refitted
            to, or the product of the exact factors, also where A is fitted to B's codes.
        correction: how to correct; None takes that section's defaults.
        statistics: of the layer's site. None measures errors on the weights alone.
        fisher: (in,), see `make_scaling`.
        seed: of all that is random here.

    Returns:
        What goes into the store. A layer whose decomposition fails stays as it was; one whose
        quantization fails, or adds more error than the bound, keeps its form in floating point,
        both factors together. One whose correction fails, or stays above the bound, has its
        codes alone, as far as those can be made within it. Its record says why.

    Raises:
        NumericsError: NaN or infinity in the weight or the statistics, or a value that
            `float_type` cannot hold.
        MissingExtraError: the package that is to quantize is not installed.
    """
    _require_finite(weight, plan, float_type, statistics)
    if plan.form == "correction" and statistics is None:
        raise NumericsError(f"{plan.name}: a correction needs the Gram matrix of its input")
    bound = None if quantization is None else quantization.max_error
    lost: str | None = None
    if plan.form == "correction":
        try:
            made = _corrected(weight, plan, float_type, statistics, quantization, correction, seed)
            return _measured(weight, made, plan, float_type, statistics, bound)
        except FAILURES as error:
            lost = f"its correction failed: {first_line(error)}"
            plan = _codes_alone(plan, lost)
    found: Decomposition | None = None
    if plan.form == "factors":
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
            made = (
                _dense(weight, plan, float_type, statistics, quantization)
                if found is None
                else _factorised(found, plan, float_type, statistics, quantization)
            )
            return _measured(weight, made, plan, float_type, statistics, bound)
        except FAILURES as error:
            failure = f"its quantization failed: {first_line(error)}"
            reason = failure if lost is None else f"{lost}; {failure}"
    if found is None:
        return keep_layer(weight, plan, float_type, reason)
    in_floats = dict.fromkeys(plan.quantization)
    plan = plan.model_copy(update={"quantization": in_floats, "reason": reason})
    try:
        made = _factorised(found, plan, float_type, statistics, quantization)
        return _measured(weight, made, plan, float_type, statistics, None)
    except ValueError as error:
        raise NumericsError(f"{plan.name}: {error}") from error


def keep_layer(
    weight: Tensor, plan: LayerPlan, float_type: FloatType, reason: str | None
) -> StoredLayer:
    """A layer left as it was: its record, and its weight in the store's float type.

    Raises:
        NumericsError: that type cannot hold the weight.
    """
    kept = plan.model_copy(
        update={"form": "dense", "rank": None, "quantization": {"weight": None}, "reason": reason}
    )
    rounded = weight.to(TORCH_TYPES[float_type])
    if not torch.isfinite(rounded).all():
        raise NumericsError(f"{plan.name}: {too_wide(float_type)}")
    stored: dict[Slot, StoredWeight] = {"weight": FloatWeight(rounded)}
    return StoredLayer(_record(weight, kept, float_type, stored, {}, True, []), stored)


@dataclass(frozen=True)
class _Made:
    """What is to be stored of a layer.

    Attributes:
        before: what the stored matrices approximate, (out, in).
        decomposed: whether that is an approximation of the weight itself.
        spectrum: of what the factors were cut from.
        notes: of what was done, without those of the matrices.
    """

    stored: dict[Slot, StoredWeight]
    before: Tensor
    decomposed: bool = False
    spectrum: LayerSpectrum | None = None
    notes: tuple[str, ...] = ()


def _dense(
    weight: Tensor,
    plan: LayerPlan,
    float_type: FloatType,
    statistics: SiteStatistics | None,
    quantization: QuantizeSection | None,
) -> _Made:
    """Codes of the layer's target."""
    target = _target(weight, float_type, statistics, quantization)
    gram = None if statistics is None else statistics.gram
    return _Made({"weight": stored_matrix(target, plan, "weight", float_type, gram)}, target)


def _factorised(
    found: Decomposition,
    plan: LayerPlan,
    float_type: FloatType,
    statistics: SiteStatistics | None,
    quantization: QuantizeSection | None,
) -> _Made:
    """Found factors, each in codes or rounded."""
    gram = None if statistics is None else statistics.gram
    stored = stored_factors(
        found.factors, found.target, plan, float_type, gram, _aware(quantization)
    )
    assert plan.rank is not None
    spectrum = layer_spectrum(found.values, plan.rank)
    return _Made(
        stored, found.factors.product(), decomposed=True, spectrum=spectrum, notes=found.notes
    )


def _corrected(
    weight: Tensor,
    plan: LayerPlan,
    float_type: FloatType,
    statistics: SiteStatistics | None,
    quantization: QuantizeSection | None,
    section: CorrectSection | None,
    seed: int,
) -> _Made:
    """Codes and the correction beside them, for the layer's target."""
    assert statistics is not None
    assert plan.rank is not None
    target = CorrectionTarget(
        _target(weight, float_type, statistics, quantization), statistics.gram, plan.name
    )
    section = section or CorrectSection()
    found = corrected(
        target,
        plan,
        section,
        seed,
        float_type=float_type,
        aware=_aware(quantization),
    )
    notes = () if section.method == "inside" else target.scaling.notes
    spectrum = None
    if found.values is not None:
        spectrum = layer_spectrum(found.values, plan.rank, of="residual")
    return _Made(found.stored, target.weight, spectrum=spectrum, notes=notes)


def _target(
    weight: Tensor,
    float_type: FloatType,
    statistics: SiteStatistics | None,
    quantization: QuantizeSection | None,
) -> Tensor:
    """What a layer's codes, corrected or not, are to approximate: W, or what it was refitted to."""
    weight = weight.to(TORCH_TYPES[float_type])
    dense = None if statistics is None else statistics.dense
    if quantization is None or not quantization.refit or dense is None:
        return weight
    assert statistics is not None
    return refit_target(weight, statistics.gram, dense.cross, quantization.refit_damping)


def _aware(quantization: QuantizeSection | None) -> FactorAware:
    return FULLY_AWARE if quantization is None else quantization.factors.aware


def _codes_alone(plan: LayerPlan, reason: str) -> LayerPlan:
    """The plan of a layer whose correction is given up."""
    quantization = {"weight": plan.quantization["weight"]}
    return plan.model_copy(
        update={"form": "dense", "rank": None, "quantization": quantization, "reason": reason}
    )


def _measured(
    weight: Tensor,
    made: _Made,
    plan: LayerPlan,
    float_type: FloatType,
    statistics: SiteStatistics | None,
    bound: float | None,
) -> StoredLayer:
    """What was made of a layer, with its errors.

    Raises:
        NumericsError: it is farther from what it approximates than the bound.
    """
    product = stored_product(made.stored).to(weight.device)
    errors: dict[str, float] = {}
    if _is_quantized(plan):
        gram = None if statistics is None else statistics.gram
        _require_close(weight, made.before, product, gram, bound)
        if made.decomposed:
            errors["decompose"] = _error(weight, made.before, statistics)
        errors["quantize"] = _error(weight, product, statistics)
    else:
        errors["decompose"] = _error(weight, product, statistics)
    notes = [*made.notes]
    for slot, part in made.stored.items():
        notes.extend(f"{slot}: {note}" for note in part.notes)
    return StoredLayer(
        record=_record(
            weight, plan, float_type, made.stored, errors, statistics is not None, notes
        ),
        weights=made.stored,
        spectrum=made.spectrum,
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
    if plan.form != "factors" and not torch.isfinite(weight.to(TORCH_TYPES[float_type])).all():
        raise NumericsError(f"{plan.name}: {too_wide(float_type)}")


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


def _error(weight: Tensor, approximation: Tensor, statistics: SiteStatistics | None) -> float:
    """Relative output error; against the dense model's outputs where its inputs are known."""
    if statistics is None:
        return relative_output_error(weight, approximation, None)
    if statistics.dense is None:
        return relative_output_error(weight, approximation, statistics.gram)
    return refitted_output_error(
        weight, approximation, statistics.dense.gram, statistics.gram, statistics.dense.cross
    )


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
        subclass=plan.subclass,
        role=plan.role,
        tied=plan.tied,
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
