"""Single matrices of integer codes: packing against `MatMulNBits` and against the unpacker."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from asvd_q.plan import QuantSpec
from asvd_q.quantization import QuantizedWeight, quantize
from asvd_q_exporters.onnx.nbits.layout import container_bits, nbits_layout
from asvd_q_exporters.onnx.nbits.pack import nbits_tensor, pack_bits
from asvd_q_exporters.onnx.nbits.unpack import dequantize
from tests.exporters.onnx.reference import relative, run_operator


def made(bits: int, group: int, symmetric: bool, shape: tuple[int, int]) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(shape, generator=generator)
    # A searched range turns symmetric grids round where that pays: scales of both signs.
    spec = QuantSpec(bits=bits, group_size=group, symmetric=symmetric, clip="mse")
    quantized = quantize(weight, spec)
    assert isinstance(quantized, QuantizedWeight)
    return quantized


def packed(weight: QuantizedWeight) -> tuple[dict[str, int], list[Tensor]]:
    layout = nbits_layout(weight.shape, weight.spec, 4)
    parts = ["codes", "scales", "zero_points"][: 3 if layout.zero_points else 2]
    tensors = [nbits_tensor(weight, part, torch.float32) for part in parts]
    assert sum(tensor.nbytes for tensor in tensors) == layout.nbytes(4)
    attributes = {
        "N": layout.rows,
        "K": layout.columns,
        "bits": layout.bits,
        "block_size": layout.block,
    }
    return attributes, tensors


CASES = [
    (bits, group, symmetric, shape)
    for bits in range(2, 9)
    for symmetric in (True, False)
    for group, shape in [(16, (40, 24)), (32, (17, 24)), (64, (24, 96)), (-1, (24, 300))]
] + [(4, 128, False, (33, 384)), (8, 256, True, (8, 512)), (2, 128, False, (5, 130))]


@pytest.mark.parametrize(("bits", "group", "symmetric", "shape"), CASES)
def test_runtime_and_unpacker_read_the_stored_matrix(
    bits: int, group: int, symmetric: bool, shape: tuple[int, int]
) -> None:
    weight = made(bits, group, symmetric, shape)
    attributes, tensors = packed(weight)
    arrays = [tensor.numpy() for tensor in tensors]
    assert (arrays[1] < 0).any() == symmetric
    assert np.array_equal(dequantize(attributes, *arrays), weight.dequantize())
    x = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(0))
    found = run_operator("MatMulNBits", attributes, arrays, x)
    assert relative(found, x @ weight.dequantize().T) < 1e-5


def test_codes_are_packed_low_bits_first() -> None:
    values = torch.tensor([[1, 2, 3, 0, 2]], dtype=torch.uint8)
    assert pack_bits(values, 4).tolist() == [[0x21, 0x03, 0x02]]
    assert pack_bits(values, 2).tolist() == [[0b00111001, 0b10]]
    assert pack_bits(values, 8).tolist() == values.tolist()


def test_containers() -> None:
    assert [container_bits(bits) for bits in range(2, 9)] == [2, 4, 4, 8, 8, 8, 8]
    narrow = nbits_layout((8, 64), QuantSpec(bits=3, group_size=32), 4)
    assert (narrow.bits, narrow.shift) == (4, 4)


def test_a_scale_per_row_takes_the_cheapest_block() -> None:
    per_row = QuantSpec(bits=4, group_size=-1)
    assert nbits_layout((8, 4096), per_row, 4).block == 256
    assert nbits_layout((8, 64), per_row, 4).block == 64
    assert nbits_layout((8, 24), per_row, 4).block == 32
    assert nbits_layout((8, 64), QuantSpec(bits=4, group_size=128), 4).block == 64
    with pytest.raises(ValueError, match="48"):
        nbits_layout((8, 96), QuantSpec(bits=4, group_size=48), 4)
