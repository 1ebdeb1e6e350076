"""The order in which factors are quantized: what A is told of B's codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asvd_q.compression import matrices
from asvd_q.compression.layer import compress_layer
from asvd_q.plan import LayerPlan, QuantSpec
from asvd_q.recipe import DecomposeSection, FactorAware, QuantizeSection
from asvd_q.recipe.quantize import Factors
from asvd_q.store import StoredLayer
from tests.decomposition.reference import HARD, Case, random_case, site_statistics

RANK = 16
SECTION = DecomposeSection.model_validate({"scaling": "whitening", "ranks": {"*": RANK}})


def compressed(case: Case, method: str, aware: FactorAware | None = None) -> StoredLayer:
    spec = QuantSpec.model_validate(
        {"method": method, "bits": 3, "group_size": 16, "symmetric": False}
    )
    plan = LayerPlan(
        name="layer",
        kind="layer",
        block=0,
        shape=(case.weight.shape[0], case.weight.shape[1]),
        form="factors",
        rank=RANK,
        quantization={"B": spec, "A": spec},
    )
    section = None if aware is None else QuantizeSection(factors=Factors(aware=aware))
    return compress_layer(
        case.weight,
        plan,
        "float32",
        section=SECTION,
        quantization=section,
        statistics=site_statistics(case),
    )


def output_error(case: Case, stored: StoredLayer) -> float:
    product = stored.weights["A"].dequantize().double() @ stored.weights["B"].dequantize().double()
    inputs = case.inputs.numpy()
    wrong = inputs @ (product - case.weight.double()).numpy().T
    return float(np.linalg.norm(wrong) / np.linalg.norm(inputs @ case.weight.double().numpy().T))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor | None]]:
    """Matrices that were quantized, B before A, with the Gram matrix each came with."""
    found: list[tuple[Tensor, Tensor | None]] = []
    original = matrices.quantize

    def spy(matrix: Tensor, spec: QuantSpec, gram: Tensor | None) -> Any:
        found.append((matrix, gram))
        return original(matrix, spec, gram)

    monkeypatch.setattr(matrices, "quantize", spy)
    return found


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_left_factor_is_fitted_to_the_stored_right_one(
    method: str, kind: str, calls: list[tuple[Tensor, Tensor | None]]
) -> None:
    case = HARD[kind](random_case((48, 64)))
    stored = compressed(case, method)
    (_, gram), (left, latent_gram) = calls
    assert gram is not None
    assert torch.equal(gram, case.gram)
    right = stored.weights["B"].dequantize().double().numpy()
    latent = case.inputs.numpy() @ right.T
    expected_gram = latent.T @ latent / len(latent)
    assert latent_gram is not None
    scale = np.abs(expected_gram).max()
    assert np.abs(latent_gram.numpy() - expected_gram).max() <= 1e-9 * scale
    outputs = case.inputs.numpy() @ case.weight.double().numpy().T
    best, *_ = np.linalg.lstsq(latent, outputs, rcond=1e-9)
    ours = np.linalg.norm(latent @ left.numpy().T - outputs)
    assert ours <= np.linalg.norm(latent @ best - outputs) * (1 + 1e-5) + 1e-6 * scale**0.5


def test_without_it_the_exact_factors_are_quantized(
    calls: list[tuple[Tensor, Tensor | None]],
) -> None:
    case = random_case((48, 64))
    compressed(case, "gptq", FactorAware(refit=False, latent_gram=False))
    (right, _), (left, latent_gram) = calls
    assert latent_gram is not None
    torch.testing.assert_close(latent_gram, right @ case.gram @ right.T)
    # √Σ in both factors: AᵀA is Σ, and so diagonal.
    products = left.T @ left
    assert (products - products.diagonal().diag()).abs().max() < 1e-9 * products.max()


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_refit_lowers_the_output_error(method: str) -> None:
    case = random_case((48, 64))
    without = compressed(case, method, FactorAware(refit=False))
    assert output_error(case, compressed(case, method)) < output_error(case, without)


def test_gptq_loses_less_than_rounding_to_nearest() -> None:
    case = random_case((48, 64))
    errors = {method: compressed(case, method).record.errors for method in ("rtn", "gptq")}
    assert errors["gptq"]["quantize"] < errors["rtn"]["quantize"]
    assert errors["gptq"]["decompose"] == errors["rtn"]["decompose"]


def test_the_recorded_error_is_that_of_the_stored_codes() -> None:
    case = HARD["outliers"](random_case((48, 64)))
    stored = compressed(case, "gptq")
    assert stored.record.errors["quantize"] == pytest.approx(output_error(case, stored), rel=1e-6)
