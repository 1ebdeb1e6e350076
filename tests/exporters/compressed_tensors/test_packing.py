"""Packing against an independent unpacker, and against the library's own code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from asvd_q.plan import QuantSpec
from asvd_q.quantization import QuantizedWeight, quantize
from asvd_q_exporters._runner import quiet
from asvd_q_exporters.compressed_tensors.layout import group_width, packed_layout
from asvd_q_exporters.compressed_tensors.pack import pack_columns, pack_weight
from asvd_q_exporters.compressed_tensors.unpack import unpack_matrix

SHAPES = [(1, 16), (32, 32), (7, 96), (5, 352), (3, 100)]
BITS = [2, 3, 4, 5, 6, 7, 8]
GROUP_SIZES = [-1, 16, 32, 50, 64, 128, 256]


def random_codes(shape: tuple[int, int], spec: QuantSpec) -> QuantizedWeight:
    """A weight of random codes, the extremes among them, and random scales of both signs."""
    generator = torch.Generator().manual_seed(sum(shape) + spec.bits)
    top = (1 << spec.bits) - 1
    codes = torch.randint(0, top + 1, shape, generator=generator, dtype=torch.uint8)
    codes[0, 0], codes[-1, -1] = 0, top
    scales = torch.randn(shape[0], spec.groups(shape[1]), generator=generator)
    return QuantizedWeight(codes, scales.to(torch.float16), zeros=None, spec=spec)


def written_groups(columns: int, spec: QuantSpec) -> int | None:
    """`group_size` of the configuration."""
    width = group_width(columns, spec)
    return None if width == columns else width


def as_numpy(tensors: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_matrices_round_trip(bits: int, group_size: int) -> None:
    spec = QuantSpec(bits=bits, group_size=group_size)
    for shape in SHAPES:
        weight = random_codes(shape, spec)
        tensors = pack_weight(weight)
        found = unpack_matrix(as_numpy(tensors), bits, written_groups(shape[1], spec))
        assert np.array_equal(found, weight.dequantize().numpy())
        layout = packed_layout(shape, spec)
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
            name: getattr(layout, name) for name in tensors
        }
        assert layout.nbytes == sum(tensor.nbytes for tensor in tensors.values())


def test_a_word_by_hand() -> None:
    """Low bits first; the eleventh 3-bit value begins in one word and ends in the next."""
    values = torch.zeros(1, 12, dtype=torch.uint8)
    values[0, 0], values[0, 1], values[0, 10] = 5, 1, 0b110
    first, second = (int(word) & 0xFFFFFFFF for word in pack_columns(values, 3)[0])
    assert first == 5 | 1 << 3 | 0b10 << 30
    assert second == 1


@pytest.mark.parametrize(
    ("columns", "group_size", "width"),
    [(96, 64, 32), (96, 128, 96), (128, 64, 64), (96, -1, 96), (352, 128, 32), (100, 64, 4)],
)
def test_groups_of_one_width(columns: int, group_size: int, width: int) -> None:
    """A narrower last group cuts the others into pieces that repeat their scale."""
    spec = QuantSpec(group_size=group_size)
    assert group_width(columns, spec) == width
    weight = random_codes((3, columns), spec)
    scales = pack_weight(weight)["weight_scale"]
    assert torch.equal(scales.repeat_interleave(width, 1), weight.scales[:, weight.group_index])


@pytest.fixture(scope="module")
def library() -> Any:
    pytest.importorskip("compressed_tensors")
    with quiet():
        from compressed_tensors.compressors import pack_quantized
    return pack_quantized


@pytest.mark.parametrize("bits", BITS)
def test_the_library_packs_the_same_words(library: Any, bits: int) -> None:
    for shape in SHAPES:
        codes = random_codes(shape, QuantSpec(bits=bits)).codes
        signed = (codes.int() - (1 << (bits - 1))).to(torch.int8)
        assert torch.equal(pack_columns(codes, bits), library.pack_to_int32(signed, bits))


@pytest.mark.parametrize("bits", BITS)
def test_the_library_reads_the_same_weights(library: Any, bits: int) -> None:
    """In float32, as a model that is loaded in it has them; in float16, rounded once."""
    from compressed_tensors.quantization import QuantizationScheme

    for group_size in GROUP_SIZES:
        for shape in SHAPES:
            spec = QuantSpec(bits=bits, group_size=group_size)
            weight = random_codes(shape, spec)
            width = written_groups(shape[1], spec)
            arguments = {
                "num_bits": bits,
                "strategy": "group" if width else "channel",
                "group_size": width,
            }
            scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
            for dtype in (torch.float32, torch.float16):
                tensors = pack_weight(weight)
                tensors["weight_scale"] = tensors["weight_scale"].to(dtype)
                found = library.PackedQuantizationCompressor.decompress(tensors, scheme)
                assert torch.equal(found["weight"], weight.dequantize(dtype))


def test_grids_with_negative_scales_are_kept() -> None:
    """The search of the range makes them where a group's larger side is the positive one."""
    values = torch.rand(64, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = quantize(values - 0.2, QuantSpec(bits=3, group_size=16, clip="mse"))
    assert isinstance(weight, QuantizedWeight)
    assert (weight.scales < 0).any()
    found = unpack_matrix(as_numpy(pack_weight(weight)), 3, 16)
    assert np.array_equal(found, weight.dequantize().numpy())
