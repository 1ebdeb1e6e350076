"""NF4: bitsandbytes makes the bytes, and we read them exactly as it does."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from bitsandbytes import functional
from torch import Tensor

from asvd_q.errors import MissingExtraError
from asvd_q.plan import QuantSpec, store_bytes
from asvd_q.quantization import quantize, weight_from_tensors
from asvd_q.quantization.nf4 import NF4_VALUES, Nf4Weight
from asvd_q.spec import NF4_BLOCKS
from tests.quantization.nf4_reference import nf4 as spec
from tests.quantization.nf4_reference import theirs, weights

SHAPES = [(64, 64), (7, 33), (1, 1), (1, 130), (5, 48), (300, 48), (33, 130), (16, 4096), (96, 256)]


@pytest.fixture(autouse=True)
def _not_compiled() -> Iterator[None]:
    """bitsandbytes compiles its way for odd sizes, which takes seconds and changes nothing."""
    with torch.compiler.set_stance("force_eager"):
        yield


def made(weight: Tensor, settings: QuantSpec) -> Nf4Weight:
    found = quantize(weight, settings)
    assert isinstance(found, Nf4Weight)
    return found


@pytest.mark.parametrize("kind", ["normal", "outliers", "zeros", "bfloat16", "float64"])
@pytest.mark.parametrize("double", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("block", NF4_BLOCKS)
def test_dequantized_as_bitsandbytes_does_bit_for_bit(block: int, double: bool, kind: str) -> None:
    for shape in SHAPES:
        weight = weights(shape, kind)
        found = made(weight, spec(block, double))
        packed, expected = theirs(weight, spec(block, double))
        assert torch.equal(found.packed, packed)
        assert torch.equal(found.dequantize(), expected)
        for dtype in (torch.bfloat16, torch.float16):
            assert torch.equal(found.dequantize(dtype), expected.to(dtype))


@pytest.mark.parametrize("double", [False, True], ids=["plain", "double"])
def test_dequantized_as_its_own_call_on_the_matrix(double: bool) -> None:
    weight = weights((96, 256), "normal")
    packed, state = functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=double, quant_type="nf4"
    )
    expected = functional.dequantize_4bit(packed, state)
    assert torch.equal(made(weight, spec(double=double)).dequantize(), expected)


@pytest.mark.parametrize("double", [False, True], ids=["plain", "double"])
def test_a_second_reader_in_numpy(double: bool) -> None:
    found = made(weights((33, 130), "outliers"), spec(32, double))
    parts = {name: part.numpy() for name, part in found.tensors().items()}
    packed = parts["packed"].ravel()
    codes = np.stack([packed // 16, packed % 16], axis=1).ravel()[: 33 * 130]
    scales = parts["absmax"]
    if double:
        nested = parts["nested_absmax"][np.arange(len(scales)) // 256]
        scales = parts["nested_quant_map"][scales] * nested + parts["nested_offset"]
    table = np.array(NF4_VALUES, dtype=np.float32)
    expected = table[codes] * scales[np.arange(33 * 130) // 32]
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(found.dequantize().numpy(), expected.reshape(33, 130))


def test_the_table_is_bitsandbytes_own() -> None:
    assert torch.equal(torch.tensor(NF4_VALUES), functional.get_4bit_type("nf4", device="cpu"))


def test_every_weight_gets_the_nearest_value_of_its_block() -> None:
    weight = weights((6, 100), "normal")
    found = made(weight, spec(32))
    flat = torch.nn.functional.pad(weight.reshape(-1), (0, 8)).reshape(-1, 32).double()
    scales = flat.abs().amax(1, keepdim=True)
    torch.testing.assert_close(found.absmax, scales[:, 0].float(), rtol=0, atol=0)
    table = torch.tensor(NF4_VALUES, dtype=torch.float64)
    best = (flat[:, :, None] - scales[:, :, None] * table).abs().amin(-1).reshape(-1)[:600]
    errors = (found.dequantize().double() - weight.double()).abs().reshape(-1)
    torch.testing.assert_close(errors, best, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("double", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("block", [32, 256, 4096])
def test_tensors_are_enough_to_get_the_weight_back(block: int, double: bool) -> None:
    for shape in SHAPES:
        settings = spec(block, double)
        found = made(weights(shape, "normal"), settings)
        again = weight_from_tensors(found.tensors(), settings, shape)
        assert torch.equal(again.dequantize(), found.dequantize())
        assert again.shape == shape
        stored = sum(part.numel() * part.element_size() for part in found.tensors().values())
        assert again.nbytes == found.nbytes == stored == store_bytes(shape, settings, "float32")


def test_zero_stays_exactly_zero() -> None:
    weight = weights((8, 128), "normal")
    weight[0] = 0
    weight[:, ::5] = 0
    result = made(weight, spec()).dequantize()
    assert not result[0].any()
    assert not result[:, ::5].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_what_float32_cannot_hold_is_refused(value: float) -> None:
    weight = torch.ones(2, 64, dtype=torch.float64)
    weight[1, 7] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize(weight, spec())


def test_bytes_that_do_not_fit_the_shape_are_refused() -> None:
    parts = made(weights((4, 64), "normal"), spec()).tensors()
    with pytest.raises(ValueError, match="320 NF4 codes do not fill 128 bytes"):
        weight_from_tensors(parts, spec(), (5, 64))
    with pytest.raises(ValueError, match=r"absmax is torch\.float32 of shape \(8,\)"):
        weight_from_tensors(parts, spec(32), (4, 64))
    with pytest.raises(ValueError, match=r"absmax is torch\.uint8"):
        weight_from_tensors(parts, spec(double=True), (4, 64))
    nested = parts | {"nested_offset": torch.zeros(())}
    with pytest.raises(ValueError, match="if and only if"):
        weight_from_tensors(nested, spec(), (4, 64))


def test_without_bitsandbytes_the_extra_is_named_and_stores_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = made(weights((4, 64), "normal"), spec())
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(MissingExtraError, match=r"bitsandbytes is not .* 'asvd-q\[nf4\]'"):
        quantize(torch.ones(4, 64), spec())
    again = weight_from_tensors(found.tensors(), spec(), (4, 64))
    assert torch.equal(again.dequantize(), found.dequantize())
