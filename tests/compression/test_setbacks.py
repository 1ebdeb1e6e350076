"""A layer that cannot be quantized, or only at too high a price, keeps the form that it has."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from asvd_q.compression import compress_layer, matrices
from asvd_q.errors import MissingExtraError, NumericsError
from asvd_q.plan import LayerPlan, QuantSpec, Slot
from asvd_q.quantization import QuantizedWeight, quantize
from asvd_q.recipe import DecomposeSection, QuantizeSection
from asvd_q.store import StoredLayer
from tests.compression.job import compress_to
from tests.decomposition.reference import HARD, Case, random_case, site_statistics
from tests.models.families import save_family

RANK = 16
SECTION = DecomposeSection.model_validate({"scaling": "rms", "ranks": {"*": RANK}})
SLOTS: dict[str, tuple[Slot, ...]] = {"dense": ("weight",), "factors": ("B", "A")}
FAILURES = {
    "value": ValueError("a weight is too large\nfor a scale"),
    "numerics": NumericsError("a weight is too large"),
    "linalg": torch.linalg.LinAlgError("a weight is too large"),  # type: ignore[attr-defined]
}


def compressed(
    case: Case,
    form: str,
    method: str | None = "rtn",
    *,
    max_error: float | None = None,
    calibrated: bool = True,
) -> StoredLayer:
    spec = None
    if method is not None:
        spec = QuantSpec.model_validate({"method": method, "bits": 3, "group_size": 16})
    plan = LayerPlan(
        name="the.layer",
        kind="layer",
        block=0,
        shape=(case.weight.shape[0], case.weight.shape[1]),
        form="dense" if form == "dense" else "factors",
        rank=None if form == "dense" else RANK,
        quantization=dict.fromkeys(SLOTS[form], spec),
    )
    section = SECTION
    if not calibrated:
        section = SECTION.model_copy(update={"scaling": "none"})
    return compress_layer(
        case.weight,
        plan,
        "float32",
        section=section,
        quantization=QuantizeSection(max_error=max_error),
        statistics=site_statistics(case) if calibrated else None,
    )


def product(stored: StoredLayer) -> np.ndarray:
    parts = {slot: part.dequantize().double().numpy() for slot, part in stored.weights.items()}
    return parts["weight"] if "weight" in parts else parts["A"] @ parts["B"]


def kept_its_form(stored: StoredLayer, case: Case, form: str, *, calibrated: bool = True) -> bool:
    """Whether a layer is what it would be if no quantization had been asked for."""
    expected = compressed(case, form, None, calibrated=calibrated)
    return (
        stored.record.model_copy(update={"reason": None}) == expected.record
        and set(stored.weights) == set(SLOTS[form])
        and all(
            torch.equal(part.dequantize(), expected.weights[slot].dequantize())
            for slot, part in stored.weights.items()
        )
    )


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Exception], None]:
    """Makes the n-th matrix that is quantized, from 1, raise."""

    def install(number: int, error: Exception) -> None:
        calls: list[Tensor] = []

        def failing(matrix: Tensor, *rest: Any) -> Any:
            calls.append(matrix)
            if len(calls) == number:
                raise error
            return quantize(matrix, *rest)

        monkeypatch.setattr(matrices, "quantize", failing)

    return install


@pytest.mark.parametrize("error", FAILURES)
@pytest.mark.parametrize(
    ("form", "number"), [("dense", 1), ("factors", 1), ("factors", 2)], ids=["weight", "B", "A"]
)
def test_a_quantizer_that_fails(
    form: str, number: int, error: str, fail_at: Callable[[int, Exception], None]
) -> None:
    case = random_case((48, 64))
    fail_at(number, FAILURES[error])
    stored = compressed(case, form)
    assert stored.record.reason == "its quantization failed: a weight is too large"
    assert kept_its_form(stored, case, form)


def test_a_package_that_is_missing_ends_the_run(
    fail_at: Callable[[int, Exception], None],
) -> None:
    fail_at(2, MissingExtraError("gptqmodel", "gptq", "quantize"))
    with pytest.raises(MissingExtraError, match="pip install"):
        compressed(random_case((48, 64)), "factors")


@pytest.mark.parametrize("form", SLOTS)
@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_end_the_run(form: str, method: str, value: float) -> None:
    case = random_case((48, 64))
    case.inputs[3, 5] = value
    with pytest.raises(NumericsError, match=r"^the\.layer: .*NaN or infinity"):
        compressed(case, form, method)


@pytest.mark.parametrize("form", SLOTS)
def test_codes_that_stand_for_no_number(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflowing(matrix: Tensor, spec: QuantSpec, gram: Tensor | None) -> QuantizedWeight:
        found = quantize(matrix, spec, gram)
        assert isinstance(found, QuantizedWeight)
        found.scales[0, 0] = float("inf")
        return found

    monkeypatch.setattr(matrices, "quantize", overflowing)
    case = random_case((48, 64))
    stored = compressed(case, form)
    assert stored.record.reason == "its quantization failed: its codes stand for NaN or infinity"
    assert kept_its_form(stored, case, form)


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("form", SLOTS)
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_bound_is_on_what_quantization_adds_to_the_outputs(
    method: str, form: str, kind: str
) -> None:
    case = HARD[kind](random_case((48, 64)))
    free = compressed(case, form, method)
    weight, inputs = case.weight.double().numpy(), case.inputs.numpy()
    before = weight if form == "dense" else product(compressed(case, form, None))
    added = np.linalg.norm(inputs @ (product(free) - before).T)
    added /= np.linalg.norm(inputs @ weight.T)
    within = compressed(case, form, method, max_error=float(added) * (1 + 1e-4))
    assert within.record == free.record
    over = compressed(case, form, method, max_error=float(added) * (1 - 1e-4))
    assert kept_its_form(over, case, form)
    said = re.fullmatch(
        r"its quantization failed: it adds a relative output error of (\S+), "
        r"and quantize\.max_error is \S+",
        over.record.reason or "",
    )
    assert said is not None
    assert float(said[1]) == pytest.approx(added, rel=1e-3)


@pytest.mark.parametrize("form", SLOTS)
def test_without_a_calibration_the_bound_is_on_the_weights(form: str) -> None:
    case = random_case((48, 64))
    free = compressed(case, form, calibrated=False)
    weight = case.weight.numpy()
    before = product(compressed(case, form, None, calibrated=False))
    added = float(np.linalg.norm(product(free) - before) / np.linalg.norm(weight))
    within = compressed(case, form, calibrated=False, max_error=added * (1 + 1e-4))
    assert within.record == free.record
    over = compressed(case, form, calibrated=False, max_error=added * (1 - 1e-4))
    assert kept_its_form(over, case, form, calibrated=False)


def test_a_layer_that_nothing_reaches_is_within_every_bound() -> None:
    case = random_case((48, 64))
    silent = Case(case.weight, torch.zeros_like(case.inputs))
    stored = compressed(silent, "dense", max_error=1e-9)
    assert stored.record.reason is None
    assert stored.record.quantization["weight"] is not None


@pytest.mark.parametrize("decompose", [None, {"ranks": {"*": 9}}], ids=SLOTS)
def test_a_value_that_no_scale_reaches(decompose: dict[str, Any] | None, tmp_path: Path) -> None:
    """No quantizer is replaced here: float16 scales end where this weight begins."""
    model, name = save_family("llama", tmp_path / "model"), "model.layers.1.mlp.up_proj"
    tensors = load_file(model / "model.safetensors")
    tensors[f"{name}.weight"][3, 5] = 1e12
    save_file(tensors, model / "model.safetensors")
    store = compress_to(
        tmp_path / "store",
        model,
        decompose=None if decompose is None else decompose | {"scaling": "none"},
        quantize={"bits": 4, "group_size": 16},
        windows=None,
    )
    (setback,) = store.setbacks.values()
    assert setback.name == name
    assert setback.form == store.plan.layer(name).form
    assert set(setback.quantization.values()) == {None}
    assert setback.reason == (
        "its quantization failed: a weight is too large for a scale in float16"
    )
    assert setback.predicted_bytes == 4 * setback.parameters
    stored = store.layer(name)
    assert stored.record.reason == setback.reason
    assert stored.record.bytes_after == setback.predicted_bytes
    float_layer = {"exclude": [name], "bits": 4, "group_size": 16}
    expected = compress_to(
        tmp_path / "expected",
        model,
        decompose=None if decompose is None else decompose | {"scaling": "none"},
        quantize=float_layer,
        windows=None,
    )
    assert expected.setbacks == {}
    for slot, part in expected.layer(name).weights.items():
        assert torch.equal(part.dequantize(), stored.weights[slot].dequantize())
    assert (
        store.finished_plan.with_layers({name: expected.finished_plan.layer(name)})
        == expected.finished_plan
    )
