"""GPTQ against a second implementation in closed form, and on inputs that are hard."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from asvd_q.plan import QuantSpec, store_bytes
from asvd_q.quantization import QuantizedWeight, quantize, weight_from_tensors
from asvd_q.quantization.feedback import factorise
from asvd_q.quantization.grid import fit_grid
from tests.quantization import gptq_reference, reference
from tests.quantization.problems import gptq, made, output_error, problem


def assert_equal_to_reference(
    spec: QuantSpec, case: tuple[Tensor, Tensor], own_grids: bool = False
) -> tuple[QuantizedWeight, gptq_reference.Result]:
    """`own_grids`: the reference takes the grids that were found instead of making its own."""
    weight, gram = case
    found = made(weight, spec, gram)
    grids = (found.scales.double().numpy(), found.zero_points().double().numpy())
    expected = gptq_reference.quantize(
        weight.double().numpy(), gram.numpy(), spec, grids if own_grids else None
    )
    np.testing.assert_array_equal(grids[0], expected.scales)
    np.testing.assert_array_equal(grids[1], expected.zeros)
    np.testing.assert_array_equal(found.codes.numpy(), expected.codes)
    if spec.permutes(weight.shape[1]):
        assert found.permutation is not None
        assert found.permutation.dtype == torch.int32
        assert found.permutation.tolist() == expected.order
    else:
        assert found.permutation is None
    return found, expected


@pytest.mark.parametrize("order", ["natural", "act", "static", "act-static"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group", [16, 32, 48, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_of_a_second_implementation(
    bits: int, group: int, symmetric: bool, order: str
) -> None:
    spec = gptq(
        bits=bits,
        group_size=group,
        symmetric=symmetric,
        act_order="act" in order,
        static_groups="static" in order,
    )
    assert_equal_to_reference(spec, problem(4, 112, seed=bits))


@pytest.mark.parametrize("static", [False, True], ids=["moving", "static"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("act_order", [False, True], ids=["natural", "act"])
def test_the_search_of_the_range_weighs_errors_by_what_they_cost(
    act_order: bool, symmetric: bool, static: bool
) -> None:
    spec = gptq(
        bits=3,
        group_size=32,
        clip="mse",
        symmetric=symmetric,
        act_order=act_order,
        static_groups=static,
    )
    _, expected = assert_equal_to_reference(spec, problem(40, 80), own_grids=True)
    errors, least, unweighted = [], [], []
    for group, (values, costs) in enumerate(expected.fitted):
        grids = expected.scales[:, group], expected.zeros[:, group]
        errors.append(reference.on_grids(values, *grids, spec, costs).error)
        least.append(reference.least_errors(values, spec, costs))
        scales, zeros = fit_grid(torch.from_numpy(values), spec)
        blind = scales.double().numpy(), zeros.numpy()
        unweighted.append(reference.on_grids(values, *blind, spec, costs).error)
    assert (np.stack(errors) <= 1.02 * np.stack(least)).all()
    assert np.sum(errors) <= 1.002 * np.sum(least)
    assert np.sum(errors) < 0.995 * np.sum(unweighted)


@pytest.mark.parametrize("kind", ["dead", "rank-deficient", "outliers", "bfloat16", "tiny"])
@pytest.mark.parametrize("act_order", [False, True], ids=["natural", "act"])
def test_hard_inputs_against_the_second_implementation(act_order: bool, kind: str) -> None:
    for bits, group, symmetric in itertools.product((2, 4), (32, -1), (True, False)):
        spec = gptq(bits=bits, group_size=group, symmetric=symmetric, act_order=act_order)
        assert_equal_to_reference(spec, problem(5, 72, kind))


@pytest.mark.parametrize("shape", [(1, 1), (1, 161), (300, 1), (2, 17), (3, 129), (1, 33)])
def test_odd_shapes_against_the_second_implementation(shape: tuple[int, int]) -> None:
    for group, act_order in itertools.product((16, 100, -1), (False, True)):
        spec = gptq(bits=4, group_size=group, act_order=act_order, symmetric=False)
        assert_equal_to_reference(spec, problem(*shape))


@pytest.mark.parametrize("damping", [1e-6, 0.01, 0.5])
def test_the_factorisation_is_one(damping: float) -> None:
    _, gram = problem(1, 40)
    found = factorise(gram, damping)
    mean = gram.diagonal().mean()
    hessian = gram / mean + damping * torch.eye(40, dtype=torch.float64)
    product = found.upper @ found.cost.diag() @ found.upper.T
    torch.testing.assert_close(product, hessian, rtol=1e-9, atol=1e-12)
    assert torch.equal(found.upper, found.upper.triu())
    assert torch.equal(found.upper.diagonal(), torch.ones(40, dtype=torch.float64))
    assert (found.damping, found.retries) == (damping, 0)
    # The paper's factor is that of the inverse: its rows, divided by the diagonal, are how the
    # columns that are left adjust.
    paper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    torch.testing.assert_close(1 / paper.diagonal().square(), found.cost, rtol=1e-8, atol=0)


@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_beats_rounding_where_channels_are_correlated(bits: int, group: int) -> None:
    weight, gram = problem(32, 256)
    found = made(weight, gptq(bits=bits, group_size=group, clip="mse"), gram)
    nearest = quantize(weight, QuantSpec(bits=bits, group_size=group, clip="mse"))
    assert isinstance(nearest, QuantizedWeight)
    ratio = output_error(weight, found, gram) / output_error(weight, nearest, gram)
    assert ratio < 0.7


def test_without_correlations_it_is_rounding_to_nearest() -> None:
    weight, gram = problem(8, 96)
    spec = gptq(bits=3, group_size=32, symmetric=False)
    found = made(weight, spec, gram.diagonal().diag())
    nearest = quantize(weight, QuantSpec(bits=3, group_size=32, symmetric=False))
    assert isinstance(nearest, QuantizedWeight)
    assert torch.equal(found.codes, nearest.codes)
    assert torch.equal(found.scales, nearest.scales)


@pytest.mark.parametrize("factor", [2.0**-100, 2.0**40])
@pytest.mark.parametrize("act_order", [False, True], ids=["natural", "act"])
def test_the_unit_of_the_gram_matrix_does_not_matter(act_order: bool, factor: float) -> None:
    weight, gram = problem(6, 64)
    spec = gptq(bits=3, group_size=16, clip="mse", act_order=act_order)
    one, other = made(weight, spec, gram), made(weight, spec, gram * factor)
    assert all(torch.equal(part, other.tensors()[name]) for name, part in one.tensors().items())


def test_a_row_does_not_depend_on_the_others() -> None:
    weight, gram = problem(9, 100)
    spec = gptq(bits=3, group_size=32, act_order=True)
    whole, alone = made(weight, spec, gram), made(weight[-1:], spec, gram)
    assert torch.equal(whole.codes[-1:], alone.codes)
    assert torch.equal(whole.scales[-1:], alone.scales)


def test_same_input_same_bytes_and_no_change_to_the_input() -> None:
    weight, gram = problem(8, 100, "dead")
    before = weight.clone(), gram.clone()
    spec = gptq(bits=3, group_size=32, act_order=True, symmetric=False)
    first, second = made(weight, spec, gram).tensors(), made(weight, spec, gram).tensors()
    assert torch.equal(weight, before[0])
    assert torch.equal(gram, before[1])
    assert list(first) == ["codes", "scales", "zeros", "permutation"]
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(part.is_contiguous() for part in first.values())


@pytest.mark.parametrize("act_order", [False, True], ids=["natural", "act"])
def test_tensors_are_enough_to_get_the_weight_back(act_order: bool) -> None:
    weight, gram = problem(5, 72)
    spec = gptq(bits=3, group_size=32, act_order=act_order, symmetric=False)
    found = made(weight, spec, gram)
    again = weight_from_tensors(found.tensors(), spec, found.shape)
    assert torch.equal(again.dequantize(), found.dequantize())
    assert again.nbytes == found.nbytes == store_bytes((5, 72), spec, "float32")


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_channels_that_are_always_zero_have_zero_weights(symmetric: bool) -> None:
    weight, gram = problem(5, 64, "dead")
    weight[:, 0] = 1000.0  # of a dead channel: it must not widen the group's range
    found = made(weight, gptq(group_size=32, symmetric=symmetric), gram)
    assert not found.dequantize()[:, ::4].any()
    assert float(found.dequantize().abs().max()) < 1
    assert found.notes == ("16 of 64 input channels are always zero: so are their weights",)
    alive = [column for column in range(64) if column % 4]
    assert found.dequantize()[:, alive].abs().sum() > 0


def test_a_layer_that_nothing_reaches_is_rounded_to_nearest() -> None:
    weight, gram = problem(5, 64)
    found = made(weight, gptq(group_size=32, act_order=True), torch.zeros_like(gram))
    nearest = quantize(weight, QuantSpec(bits=4, group_size=32))
    assert torch.equal(found.dequantize(), nearest.dequantize())
    assert found.notes == ("no activation reached it in the calibration: rounded to nearest",)


def test_a_damping_that_fails_is_raised_and_that_is_told() -> None:
    weight, gram = problem(4, 32, "rank-deficient")
    gram -= 1e-9 * gram.diagonal().mean() * torch.eye(32)
    found = made(weight, gptq(bits=3, damping=1e-12), gram)
    (note,) = found.notes
    assert note.startswith("damping raised ")
    retries, damping = note.removeprefix("damping raised ").split(" times, to ")
    assert 1e-9 < float(damping) == pytest.approx(1e-12 * 10 ** int(retries))
    with_it = made(weight, gptq(bits=3, damping=float(damping)), gram)
    assert torch.equal(found.codes, with_it.codes)
    assert made(weight, gptq(bits=3), gram).notes == ()


def test_a_gram_matrix_that_is_none_fails_at_any_damping() -> None:
    weight, gram = problem(4, 32)
    gram[0, 1] = gram[1, 0] = 100 * gram.diagonal().max()
    with pytest.raises(ValueError, match="no Cholesky factorisation at any damping"):
        quantize(weight, gptq(), gram)


@pytest.mark.parametrize(
    ("weight", "gram", "message"),
    [
        (torch.ones(2, 32), None, "gptq needs the Gram matrix of the layer's input"),
        (torch.ones(2, 32), torch.eye(31), r"must be \(32, 32\), and it is \(31, 31\)"),
        (torch.full((2, 32), torch.nan), torch.eye(32), "the weight holds NaN or infinity"),
        (torch.ones(2, 32), torch.full((32, 32), torch.inf), "the Gram matrix holds NaN"),
        (torch.ones(2, 32), -torch.eye(32), "negative entries on its diagonal"),
        (torch.full((2, 32), 1e30), torch.eye(32), "too large for a scale in float16"),
    ],
    ids=["no-gram", "shape", "nan-weight", "infinite-gram", "negative", "large"],
)
def test_bad_input_is_told(weight: Tensor, gram: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(weight, gptq(), gram)
