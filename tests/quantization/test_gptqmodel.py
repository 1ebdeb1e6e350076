"""GPTQ against gptqmodel's, which is also a backend of ours."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from asvd_q.errors import MissingExtraError
from asvd_q.plan import QuantSpec
from asvd_q.quantization import QuantizedWeight, quantize
from tests.quantization.problems import gptq, made, output_error, problem


def both(
    weight: Tensor, gram: Tensor, **settings: Any
) -> tuple[QuantizedWeight, QuantizedWeight, QuantSpec]:
    """Our codes, gptqmodel's, and the settings."""
    spec = gptq(**settings)
    theirs = made(weight, gptq(**settings, backend="gptqmodel"), gram)
    return made(weight, spec, gram), theirs, spec


def assert_agree(
    ours: QuantizedWeight, theirs: QuantizedWeight, weight: Tensor, gram: Tensor
) -> None:
    """At least 99.9 % equal codes, or the same output error to 0.1 %.

    gptqmodel computes in float32: where a weight lies between two codes it may take the other
    one, and what follows in that row is then another solution, as good as ours.
    """
    equal = float((ours.codes == theirs.codes).double().mean())
    ratio = (output_error(weight, ours, gram) / output_error(weight, theirs, gram)) ** 0.5
    assert equal >= 0.999 or abs(ratio - 1) <= 1e-3
    assert equal >= 0.98


@pytest.mark.parametrize("order", ["natural", "act", "act-static"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_agrees_with_gptqmodel(bits: int, group: int, symmetric: bool, order: str) -> None:
    weight, gram = problem(96, 256, seed=bits)
    ours, theirs, spec = both(
        weight,
        gram,
        bits=bits,
        group_size=group,
        symmetric=symmetric,
        act_order="act" in order,
        static_groups="static" in order,
    )
    assert_agree(ours, theirs, weight, gram)
    assert ours.scales.dtype == theirs.scales.dtype
    assert ours.scales.shape == theirs.scales.shape
    # A column of theirs lies in the same group as ours, whatever the order inside of it.
    assert (theirs.permutation is not None) == spec.permutes(256)
    assert torch.equal(ours.group_index, theirs.group_index)
    same = (ours.scales == theirs.scales).double().mean()
    assert same >= 0.98


@pytest.mark.parametrize("kind", ["dead", "rank-deficient", "outliers", "bfloat16", "tiny"])
@pytest.mark.parametrize("group", [48, 100, -1])
def test_agrees_on_hard_inputs(group: int, kind: str) -> None:
    weight, gram = problem(48, 200, kind)
    ours, theirs, _ = both(weight, gram, bits=4, group_size=group)
    assert_agree(ours, theirs, weight, gram)
    assert ours.notes == theirs.notes


@pytest.mark.parametrize("shape", [(1, 64), (33, 1), (7, 130)])
def test_agrees_on_odd_shapes(shape: tuple[int, int]) -> None:
    weight, gram = problem(*shape)
    ours, theirs, _ = both(weight, gram, bits=3, group_size=64, symmetric=False)
    assert_agree(ours, theirs, weight, gram)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_its_own_search_of_the_range_is_used(symmetric: bool) -> None:
    weight, gram = problem(48, 256)
    settings = {"bits": 3, "group_size": 64, "symmetric": symmetric}
    ours, theirs, _ = both(weight, gram, **settings, clip="mse")
    whole = made(weight, gptq(**settings, backend="gptqmodel"), gram)
    assert output_error(weight, theirs, gram) < output_error(weight, whole, gram)
    # Ours weighs errors by what they cost.
    assert output_error(weight, ours, gram) < 1.02 * output_error(weight, theirs, gram)


def test_what_is_stored_is_what_gptqmodel_computed() -> None:
    """Scales were rounded before it chose codes: nothing is lost on the way into the store."""
    weight, gram = problem(16, 128)
    found = made(weight, gptq(bits=4, group_size=32, symmetric=False, backend="gptqmodel"), gram)
    step = found.scales.double()[:, found.group_index]
    assert int(found.codes.max()) <= 15
    error = (found.dequantize().double() - weight.double()).abs()
    assert float((error / step).median()) < 1


def test_a_damping_that_fails_is_raised_and_that_is_told() -> None:
    weight, gram = problem(4, 32, "rank-deficient")
    gram -= 0.02 * gram.diagonal().mean() * torch.eye(32)
    found = made(weight, gptq(bits=3, damping=0.01, backend="gptqmodel"), gram)
    (note,) = found.notes
    assert note.startswith("damping raised to 0.0")


def test_a_value_beyond_float16_scales_is_refused() -> None:
    with pytest.raises(ValueError, match="too large for a scale in float16"):
        quantize(torch.full((2, 32), 1e30), gptq(backend="gptqmodel"), torch.eye(32))


def test_it_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    weight, gram = problem(8, 64, "rank-deficient")
    gram -= 0.02 * gram.diagonal().mean() * torch.eye(64)  # its recovery warns
    level = logging.root.manager.disable
    quantize(weight, gptq(backend="gptqmodel", damping=1e-6), gram)
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == level


def test_without_gptqmodel_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gptqmodel", None)
    monkeypatch.setitem(sys.modules, "gptqmodel.quantization", None)
    weight, gram = problem(4, 32)
    with pytest.raises(MissingExtraError, match=r"gptqmodel is not .* 'asvd-q\[gptq\]'"):
        quantize(weight, gptq(backend="gptqmodel"), gram)
    assert made(weight, gptq(), gram).shape == (4, 32)
