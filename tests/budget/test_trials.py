"""Trials make what compression makes of the same statistics, and their loss is of that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from asvd_q.budget.evidence import LayerEvidence
from asvd_q.budget.trials import LayerTrials
from asvd_q.compression import compress_layer, matrices
from asvd_q.errors import NumericsError
from asvd_q.plan import LayerPlan, QuantSpec
from asvd_q.quantization import StoredWeight, float_type_of, quantize
from asvd_q.recipe import DecomposeSection, QuantizeSection
from tests.budget.given import dense, factors, layer_ref, recipe
from tests.decomposition.reference import HARD, Case, random_case, site_statistics

SHAPE = (48, 64)
REF = layer_ref(SHAPE)
SAMPLE = 100


def spec(bits: int = 4, **settings: Any) -> QuantSpec:
    return QuantSpec.model_validate({"method": "gptq", "bits": bits, "group_size": 16} | settings)


DENSE = {
    "gptq": dense(REF, spec(3)),
    "rtn": dense(REF, spec(8, method="rtn")),
    "asymmetric": dense(REF, spec(2, symmetric=False, act_order=True, static_groups=True)),
    "nf4": dense(REF, QuantSpec(method="nf4", group_size=32)),
}
FACTORS = {
    "gptq": factors(REF, 16, spec(4)),
    "widths": factors(REF, 24, spec(8), spec(3)),
    "odd": factors(REF, 11, spec(4, method="rtn"), spec(4)),
    "half": factors(REF, 16, QuantSpec(method="nf4", group_size=32), spec(5)),
}


def weight_of(case: Case) -> Tensor:
    return case.weight if case.weight.dtype == torch.bfloat16 else case.weight.float()


def evidence_of(case: Case) -> LayerEvidence:
    generator = torch.Generator().manual_seed(9)
    inputs = case.inputs[:SAMPLE].float()
    gradients = torch.randn(len(inputs), case.weight.shape[0], generator=generator)
    return LayerEvidence(site_statistics(case), inputs, gradients, 0.7)


def trials_of(
    case: Case,
    section: DecomposeSection | None = None,
    quantization: QuantizeSection | None = None,
    fisher: Tensor | None = None,
) -> LayerTrials:
    given = recipe(decompose=section, quantize=quantization or QuantizeSection(), seed=5)
    weight = weight_of(case)
    return LayerTrials(
        REF.name, weight, evidence_of(case), given, float_type_of(weight.dtype), fisher
    )


@contextmanager
def quantized() -> Iterator[list[StoredWeight]]:
    """All that is quantized inside the context."""
    found: list[StoredWeight] = []

    def keep(*args: Any) -> StoredWeight:
        found.append(quantize(*args))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrices, "quantize", keep)
        yield found


def assert_alike(
    case: Case,
    plan: LayerPlan,
    section: DecomposeSection | None = None,
    quantization: QuantizeSection | None = None,
    fisher: Tensor | None = None,
) -> None:
    weight, evidence = weight_of(case), evidence_of(case)
    with quantized() as stored_parts:
        stored = compress_layer(
            weight,
            plan,
            float_type_of(weight.dtype),
            section=section,
            quantization=quantization,
            statistics=evidence.statistics,
            fisher=fisher,
            seed=5,
        )
    assert stored.record.reason is None
    own = trials_of(case, section, quantization, fisher)
    with quantized() as tried_parts:
        loss = own.loss(plan)
    assert len(tried_parts) == len(stored_parts) == len(plan.quantization)
    for tried, kept in zip(tried_parts, stored_parts, strict=True):
        for name, tensor in kept.tensors().items():
            assert torch.equal(tried.tensors()[name], tensor), name
    parts = {slot: part.dequantize().double() for slot, part in stored.weights.items()}
    product = parts["weight"] if plan.rank is None else parts["A"] @ parts["B"]
    error = evidence.inputs.double() @ (product - weight.double()).T
    assert loss == pytest.approx(evidence.loss(error), rel=2e-3)
    assert loss > 0


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("form", DENSE)
def test_dense_forms(form: str, kind: str) -> None:
    assert_alike(HARD[kind](random_case(SHAPE)), DENSE[form])


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("form", FACTORS)
def test_factors(form: str, kind: str) -> None:
    assert_alike(HARD[kind](random_case(SHAPE)), FACTORS[form], DecomposeSection())


@pytest.mark.parametrize(
    "settings",
    [
        {"scaling": "abs_mean", "alpha": 0.7},
        {"scaling": "none", "rotation": "none"},
        {"scaling": "rms", "sigma_split": "both", "rotation": "random"},
        {"scaling": "whitening", "sigma_split": 0.3, "damping": 0.01},
    ],
)
def test_factors_as_the_section_wants_them(settings: dict[str, Any]) -> None:
    section = DecomposeSection.model_validate(settings)
    assert_alike(random_case(SHAPE), FACTORS["widths"], section)


def test_factors_scaled_by_fisher_information() -> None:
    fisher = torch.rand(SHAPE[1], generator=torch.Generator().manual_seed(1)).double()
    assert_alike(
        random_case(SHAPE), FACTORS["gptq"], DecomposeSection(scaling="fisher"), fisher=fisher
    )


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("latent_gram", [False, True])
def test_what_the_second_factor_is_told(refit: bool, latent_gram: bool) -> None:
    aware = {"refit": refit, "latent_gram": latent_gram}
    quantization = QuantizeSection.model_validate({"factors": {"aware": aware}})
    assert_alike(random_case(SHAPE), FACTORS["gptq"], DecomposeSection(), quantization)


def test_what_forms_have_in_common_is_done_once() -> None:
    own = trials_of(random_case(SHAPE), DecomposeSection())
    with quantized() as parts:
        losses = [own.loss(factors(REF, 16, spec(4), spec(bits))) for bits in (3, 4, 8)]
        assert len(parts) == 1 + 3
        losses.append(own.loss(factors(REF, 8, spec(4), spec(8))))
        assert own.loss(factors(REF, 16, spec(4), spec(4))) == losses[1]
    fresh = trials_of(random_case(SHAPE), DecomposeSection())
    assert fresh.loss(factors(REF, 8, spec(4), spec(8))) == losses[-1]
    assert len(set(losses)) == 4


@pytest.mark.parametrize("kind", HARD)
def test_truncation_is_the_loss_of_factors_in_floats(kind: str) -> None:
    case = HARD[kind](random_case(SHAPE))
    own = trials_of(case, DecomposeSection())
    found = own.truncation
    assert found.shape == (49,)
    assert found[-1] == 0
    assert bool((found.diff() <= 0).all())
    exact = [own.loss(factors(REF, rank, None)) for rank in range(1, 48)]
    assert own.bound(factors(REF, 7, spec(4))) == float(found[7])
    rounding = 0.1 if kind == "bf16" else 1e-2
    for rank in range(1, 48):
        largest = max(exact[rank - 1 :])
        assert float(found[rank]) == pytest.approx(largest, rel=rounding, abs=1e-6 * exact[0])


def test_a_layer_in_floats_loses_nothing() -> None:
    assert trials_of(random_case(SHAPE)).loss(dense(REF, None)) == 0


def test_what_cannot_be_made_raises() -> None:
    case = random_case(SHAPE)
    case.weight[3, 5] = 1e12
    own = trials_of(case, DecomposeSection(scaling="none"))
    with pytest.raises(ValueError, match="too large"):
        own.loss(dense(REF, spec(4, method="rtn")))
    case.weight[3, 5] = float("nan")
    own = trials_of(case, DecomposeSection(scaling="none"))
    with pytest.raises(NumericsError, match="NaN"):
        own.loss(FACTORS["gptq"])
