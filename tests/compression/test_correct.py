"""Corrected layers: what each method promises, what is stored, and what happens on failure."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asvd_q.compression import correct, layer, matrices
from asvd_q.compression.correct import corrected
from asvd_q.compression.matrices import stored_product
from asvd_q.decomposition import CorrectionTarget, refit_target
from asvd_q.errors import NumericsError
from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.plan import LayerPlan, QuantSpec, Slot
from asvd_q.quantization import FloatWeight, StoredWeight, quantize
from asvd_q.recipe import CorrectSection, QuantizeSection
from asvd_q.statistics.collectors import DenseInputs
from asvd_q.store import StoredLayer
from tests.compression.job import compress_to
from tests.decomposition.reference import HARD, Case, random_case, site_statistics
from tests.models.families import save_family

SHAPE, RANK = (24, 40), 8
METHODS = ["after", "inside", "alternate"]
GPTQ2 = QuantSpec(method="gptq", bits=2, group_size=16)


def factor_spec(bits: int | None) -> QuantSpec | None:
    return None if bits is None else QuantSpec(method="gptq", bits=bits, group_size=16)


def plan_of(
    *,
    bits: int | None = None,
    rank: int = RANK,
    name: str = "the.layer",
    shape: tuple[int, int] = SHAPE,
    weight: QuantSpec = GPTQ2,
) -> LayerPlan:
    return LayerPlan(
        name=name,
        kind="layer",
        block=0,
        shape=shape,
        form="correction",
        rank=rank,
        quantization={"weight": weight, "B": factor_spec(bits), "A": factor_spec(bits)},
    )


def decaying(shape: tuple[int, int] = SHAPE, seed: int = 0) -> Case:
    """Inputs and weights with the falling spectra that those of real layers have."""
    case = random_case(shape, seed)
    features = shape[1]
    scale = torch.arange(1, features + 1, dtype=torch.float64) ** -1.0
    mixing = torch.linalg.qr(random_case((features, features), seed + 1).weight).Q
    return Case(case.weight @ (mixing * scale.sqrt()), case.inputs @ (mixing * scale))


def target_of(case: Case) -> CorrectionTarget:
    return CorrectionTarget(case.weight, case.gram, "the.layer")


def done(case: Case, plan: LayerPlan, base: StoredWeight | None = None, **section: Any) -> Any:
    return corrected(
        target_of(case),
        plan,
        CorrectSection.model_validate(section),
        0,
        float_type="float32",
        base=base,
    ).stored


def output_error(case: Case, stored: dict[Slot, StoredWeight]) -> float:
    """From the activations, not from their Gram matrix."""
    product = stored_product(stored).numpy()
    inputs, weight = case.inputs.numpy(), case.weight.double().numpy()
    return float(np.linalg.norm(inputs @ (product - weight).T) / np.linalg.norm(inputs @ weight.T))


def codes_error(case: Case) -> float:
    codes = quantize(case.weight.double(), GPTQ2, case.gram)
    return output_error(case, {"weight": codes})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("bits", [None, 8])
def test_a_correction_lowers_the_error_of_the_codes(
    kind: str, method: str, bits: int | None
) -> None:
    case = HARD[kind](decaying())
    stored = done(case, plan_of(bits=bits), method=method)
    assert list(stored) == ["weight", "B", "A"]
    assert {slot: part.shape for slot, part in stored.items()} == plan_of().slot_shapes()
    assert output_error(case, stored) < codes_error(case)
    for slot, part in stored.items():
        assert isinstance(part, FloatWeight) == (plan_of(bits=bits).quantization[slot] is None)


@pytest.mark.parametrize("bits", [None, 8])
def test_the_methods_are_ordered_on_falling_spectra(bits: int | None) -> None:
    case = decaying((64, 64))
    plan = plan_of(bits=bits, shape=(64, 64), rank=16)
    after, inside, alternate = (
        output_error(case, done(case, plan, method=method)) for method in METHODS
    )
    assert alternate < inside < after < codes_error(case)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spec", [QuantSpec(bits=3, group_size=16), QuantSpec(method="nf4")])
def test_any_quantizer_can_make_the_codes(method: str, spec: QuantSpec) -> None:
    case = decaying()
    plain = quantize(case.weight.double(), spec)
    stored = done(case, plan_of(weight=spec), method=method)
    assert output_error(case, stored) < output_error(case, {"weight": plain})


def test_after_corrects_the_codes_that_the_layer_would_have_alone() -> None:
    case = decaying()
    base = quantize(case.weight.double(), GPTQ2, case.gram)
    stored = done(case, plan_of(), method="after")
    assert torch.equal(stored["weight"].dequantize(), base.dequantize())
    residual = (case.weight - base.dequantize().double()).numpy()
    outputs = residual @ case.inputs.numpy().T
    values = np.linalg.svd(outputs, compute_uv=False)
    best = np.sqrt((values[RANK:] ** 2).sum())
    whole = np.linalg.norm(case.weight.numpy() @ case.inputs.numpy().T)
    assert output_error(case, stored) == pytest.approx(float(best / whole), rel=1e-4)


def test_known_codes_spare_their_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    case = decaying()
    base = quantize(case.weight.double(), GPTQ2, case.gram)
    expected = done(case, plan_of(), method="after")

    def forbidden(*arguments: Any) -> Any:
        raise AssertionError("quantized again")

    monkeypatch.setattr(matrices, "quantize", forbidden)
    stored = done(case, plan_of(), base, method="after")
    for slot, part in stored.items():
        assert torch.equal(part.dequantize(), expected[slot].dequantize())


@pytest.mark.parametrize("bits", [None, 8])
def test_layers_of_one_input_share_b_to_the_last_bit(bits: int | None) -> None:
    first = decaying()
    second = Case(decaying(seed=7).weight[:12], first.inputs)
    plans = (plan_of(bits=bits, name="q"), plan_of(bits=bits, name="k", shape=(12, 40)))
    one, other = (
        done(case, plan, method="inside")["B"].tensors()
        for case, plan in zip((first, second), plans, strict=True)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_the_error_never_rises_with_the_rounds(kind: str, bits: int | None) -> None:
    case = HARD[kind](decaying())
    errors = [
        output_error(case, done(case, plan_of(bits=bits), method="alternate", rounds=rounds))
        for rounds in (1, 2, 3, 6)
    ]
    assert all(later <= earlier for earlier, later in pairwise(errors))


def test_a_round_that_does_not_help_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second round's error is made to look larger."""
    case = decaying()
    expected = done(case, plan_of(), method="alternate", rounds=1)
    asked: list[Tensor] = []
    original = CorrectionTarget.error

    def worse(self: CorrectionTarget, approximation: Tensor) -> float:
        asked.append(approximation)
        return original(self, approximation) * len(asked)

    monkeypatch.setattr(CorrectionTarget, "error", worse)
    stored = done(case, plan_of(), method="alternate", rounds=5)
    assert len(asked) == 2
    for slot, part in stored.items():
        assert torch.equal(part.dequantize(), expected[slot].dequantize())


@pytest.mark.parametrize("method", ["inside", "alternate"])
def test_codes_make_up_for_factors_of_few_bits(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = decaying((64, 64))
    plan = plan_of(bits=3, shape=(64, 64), rank=16)
    closed = output_error(case, done(case, plan, method=method))
    monkeypatch.setattr(correct._Job, "_rounded", False)
    assert closed < 0.9 * output_error(case, done(case, plan, method=method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rotation", ["none", "hadamard", "random"])
def test_rotations_do_not_change_what_float_factors_do(method: str, rotation: str) -> None:
    case = decaying()
    plain = done(case, plan_of(), method=method, rotation="none", rounds=1)
    turned = done(case, plan_of(), method=method, rotation=rotation, rounds=1)
    torch.testing.assert_close(stored_product(turned), stored_product(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_nothing_reaches(method: str) -> None:
    case = Case(random_case(SHAPE).weight, torch.zeros(50, 40, dtype=torch.float64))
    stored = done(case, plan_of(bits=8), method=method)
    assert torch.isfinite(stored_product(stored)).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (3, 5)])
def test_the_largest_rank_and_odd_shapes(method: str, shape: tuple[int, int]) -> None:
    case = random_case(shape)
    plan = plan_of(shape=shape, rank=min(shape))
    stored = done(case, plan, method=method)
    assert {slot: part.shape for slot, part in stored.items()} == plan.slot_shapes()
    # inside reads the largest directions of the inputs, which need not be those of the residual
    assert output_error(case, stored) < (0.5 if method == "inside" else 1e-3)


def compressed(
    case: Case,
    plan: LayerPlan,
    *,
    dense: DenseInputs | None = None,
    section: CorrectSection | None = None,
    **quantization: Any,
) -> StoredLayer:
    statistics = site_statistics(case)
    if dense is not None:
        statistics = replace(statistics, dense=dense)
    return layer.compress_layer(
        case.weight,
        plan,
        "float32",
        quantization=QuantizeSection.model_validate(quantization),
        correction=section,
        statistics=statistics,
    )


def test_the_record_of_a_corrected_layer() -> None:
    case, plan = Case(decaying().weight.float(), decaying().inputs), plan_of(bits=8)
    found = compressed(case, plan)
    assert found.record.form == "correction"
    assert found.record.rank == RANK
    assert found.record.quantization == plan.quantization
    assert found.record.reason is None
    assert found.record.bytes_after == sum(part.nbytes for part in found.weights.values())
    assert found.record.errors == {
        "quantize": pytest.approx(output_error(case, dict(found.weights)), rel=1e-6)
    }
    default = done(case, plan)
    for slot, part in found.weights.items():
        assert torch.equal(part.dequantize(), default[slot].dequantize())


def test_a_damping_that_had_to_be_raised_is_noted() -> None:
    case = Case(random_case((6, 4)).weight.float(), random_case((6, 4)).inputs)
    gram = torch.diag(torch.tensor([2.0, 1.0, 1.0, -1e-3], dtype=torch.float64))
    statistics = replace(site_statistics(case), gram=gram)
    plan = plan_of(shape=(6, 4), rank=2, weight=QuantSpec(bits=2, group_size=16))
    found = layer.compress_layer(case.weight, plan, "float32", statistics=statistics)
    assert found.record.form == "correction"
    assert found.record.notes == ("damping raised 4 times, to 0.01",)


def test_the_section_chooses_the_method() -> None:
    case = Case(decaying().weight.float(), decaying().inputs)
    section = CorrectSection(method="after")
    found = compressed(case, plan_of(), section=section)
    base = quantize(case.weight.double(), GPTQ2, case.gram)
    assert torch.equal(found.weights["weight"].dequantize(), base.dequantize())


def test_a_refitted_layer_is_corrected_towards_the_dense_outputs() -> None:
    case = Case(decaying().weight.float(), decaying().inputs)
    seen = case.inputs + 0.1 * random_case((1, 40), seed=3).inputs[:1]
    seen = torch.cat([seen, seen * 1.1])
    x = torch.cat([case.inputs, case.inputs])
    changed = Case(case.weight, seen)
    dense = DenseInputs(gram=x.T @ x / len(x), cross=x.T @ seen / len(x))
    found = compressed(changed, plan_of(), dense=dense, refit=True)
    plain = compressed(changed, plan_of(), dense=dense)
    assert found.record.errors["quantize"] < plain.record.errors["quantize"]
    wanted = refit_target(case.weight, changed.gram, dense.cross, 0.01)
    expected = done(Case(wanted, seen), plan_of())
    for slot, part in found.weights.items():
        assert torch.equal(part.dequantize(), expected[slot].dequantize())


def test_a_failed_correction_leaves_the_codes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    case, plan = Case(decaying().weight.float(), decaying().inputs), plan_of()

    def failing(*arguments: Any, **options: Any) -> Any:
        raise torch.linalg.LinAlgError("did not converge\nat all")  # type: ignore[attr-defined]

    monkeypatch.setattr(layer, "corrected", failing)
    found = compressed(case, plan)
    assert found.record.form == "dense"
    assert found.record.rank is None
    assert found.record.quantization == {"weight": GPTQ2}
    assert found.record.reason == "its correction failed: did not converge"
    base = quantize(case.weight.double(), GPTQ2, case.gram)
    assert torch.equal(found.weights["weight"].dequantize(), base.dequantize())


def test_codes_that_fail_with_and_without_a_correction_leave_the_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(decaying().weight.float(), decaying().inputs)

    def failing(*arguments: Any) -> Any:
        raise ValueError("a weight is too large")

    monkeypatch.setattr(matrices, "quantize", failing)
    found = compressed(case, plan_of())
    assert found.record.quantization == {"weight": None}
    assert found.record.reason == (
        "its correction failed: a weight is too large; "
        "its quantization failed: a weight is too large"
    )
    assert torch.equal(found.weights["weight"].dequantize(), case.weight)


def test_the_bound_is_on_codes_and_correction_together() -> None:
    case = Case(decaying().weight.float(), decaying().inputs)
    error = compressed(case, plan_of()).record.errors["quantize"]
    within = compressed(case, plan_of(), max_error=error * 1.01)
    assert within.record.form == "correction"
    beyond = compressed(case, plan_of(), max_error=error * 0.99)
    assert beyond.record.quantization == {"weight": None}
    assert "its correction failed: it adds a relative output error" in str(beyond.record.reason)
    assert "its quantization failed: it adds" in str(beyond.record.reason)


def test_a_correction_without_a_calibration_names_the_layer() -> None:
    with pytest.raises(NumericsError, match=r"the\.layer: a correction needs the Gram matrix"):
        layer.compress_layer(decaying().weight.float(), plan_of(), "float32")


@pytest.mark.parametrize("sequential", [False, True])
def test_a_whole_model_is_corrected_and_run(tmp_path: Path, sequential: bool) -> None:
    model = save_family("llama", tmp_path / "model")
    store = compress_to(
        tmp_path / "store",
        model,
        decompose={"ranks": {"o_proj": 8}, "include": ["o_proj"]},
        quantize={
            "method": "gptq",
            "bits": 2,
            "group_size": 16,
            "refit": sequential,
            "factors": {"A": {"bits": 8}, "B": {"bits": 8}},
        },
        correct={"ranks": {"q_proj": 4, "down_proj": 8}, "method": "alternate"},
        sequential=sequential,
    )
    ranks = store.finished_plan.correction_ranks
    assert {name.rsplit(".", 1)[-1] for name in ranks} == {"q_proj", "down_proj"}
    assert len(store.finished_plan.ranks) == len(ranks) // 2
    assert not store.setbacks
    loaded = BlockwiseModel(SourceModel.open(str(model))).load_block(0, replaced=store.replaced)
    kinds = {type(module).__name__ for module in loaded.modules()}
    assert {"CorrectedLinear", "LowRankLinear"} <= kinds


def test_a_weight_too_large_for_the_store_is_refused() -> None:
    case = decaying()
    with pytest.raises(NumericsError, match=r"the\.layer: a value does not fit into float16"):
        layer.compress_layer(
            case.weight * 1e6, plan_of(), "float16", statistics=site_statistics(case)
        )
