"""Rows of integer codes: `GatherBlockQuantized` and the unpacker against the stored matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from asvd_q.plan import LayerPlan, QuantSpec
from asvd_q.quantization import QuantizedWeight, quantize
from asvd_q_exporters.onnx.gather.operator import embedding_tensor
from asvd_q_exporters.onnx.gather.unpack import dequantize_rows
from asvd_q_exporters.onnx.nbits.layout import nbits_layout
from tests.exporters.onnx.reference import run_graph

INDICES = torch.tensor([[0, 3, 16], [5, 5, 1]])


def stored(spec: QuantSpec, shape: tuple[int, int]) -> QuantizedWeight:
    """Rows of very different sizes, one of zeros, one with an outlier."""
    generator = torch.Generator().manual_seed(spec.bits)
    weight = torch.randn(shape, generator=generator) * torch.logspace(-2, 2, shape[0])[:, None]
    weight[5] = 0
    weight[3, 1] *= 1000
    # A searched range turns symmetric grids round where that pays: scales of both signs.
    found = quantize(weight, spec)
    assert isinstance(found, QuantizedWeight)
    return found


def packed(weight: QuantizedWeight, dtype: torch.dtype) -> tuple[dict[str, int], list[Tensor]]:
    layer = LayerPlan(
        name="wte",
        kind="wte",
        block=None,
        shape=weight.shape,
        quantization={"weight": weight.spec},
        role="embedding",
    )
    layout = nbits_layout(weight.shape, weight.spec, dtype.itemsize)
    parts = ["codes", "scales", "zero_points"][: 2 if weight.spec.symmetric else 3]
    tensors = [embedding_tensor(layer, weight, part, dtype) for part in parts]
    return layout.gather_attributes, tensors


def looked_up(attributes: dict[str, int], tensors: list[Tensor], indices: Tensor) -> Tensor:
    names = ["codes", "scales", "zero_points"][: len(tensors)]
    node = helper.make_node(
        "GatherBlockQuantized",
        [names[0], "ids", *names[1:]],
        ["rows"],
        domain="com.microsoft",
        **attributes,
    )
    whole = helper.np_dtype_to_tensor_dtype(indices.numpy().dtype)
    kind = helper.np_dtype_to_tensor_dtype(tensors[1].numpy().dtype)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("ids", whole, [None, None])],
        [helper.make_tensor_value_info("rows", kind, [None, None, None])],
        [numpy_helper.from_array(t.numpy(), n) for t, n in zip(tensors, names, strict=True)],
    )
    return run_graph(graph, {"ids": indices.numpy()})


CASES = [
    (QuantSpec(bits=bits, group_size=group, symmetric=symmetric, clip="mse"), (17, columns))
    for bits in range(2, 9)
    for symmetric in (True, False)
    for group, columns in [(16, 64), (32, 36), (64, 33), (256, 512), (-1, 300)]
]


@pytest.mark.parametrize(("spec", "shape"), CASES)
def test_runtime_and_unpacker_read_the_stored_rows(spec: QuantSpec, shape: tuple[int, int]) -> None:
    weight = stored(spec, shape)
    exact = weight.dequantize()
    attributes, tensors = packed(weight, torch.float32)
    arrays = [tensor.numpy() for tensor in tensors]
    assert np.array_equal(dequantize_rows(attributes, shape, *arrays), exact)
    found = looked_up(attributes, tensors, INDICES)[..., : shape[1]]
    assert torch.equal(found, exact[INDICES])  # one rounded product each, in both


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_in_float16_are_rounded_once(bits: int, symmetric: bool) -> None:
    weight = stored(QuantSpec(bits=bits, group_size=16, symmetric=symmetric), (17, 64))
    attributes, tensors = packed(weight, torch.float16)
    found = looked_up(attributes, tensors, INDICES)
    assert torch.equal(found, weight.dequantize()[INDICES].half())


def test_indices_of_32_bits_give_the_same_rows() -> None:
    attributes, tensors = packed(stored(QuantSpec(bits=4, group_size=16), (17, 64)), torch.float32)
    found = looked_up(attributes, tensors, INDICES.int())
    assert torch.equal(found, looked_up(attributes, tensors, INDICES))


def test_a_lookup_along_columns_is_not_read() -> None:
    weight = stored(QuantSpec(bits=8, group_size=16), (17, 64))
    attributes, tensors = packed(weight, torch.float32)
    arrays = [tensor.numpy() for tensor in tensors]
    for other in ({"gather_axis": 1}, {"quantize_axis": 0}):
        with pytest.raises(ValueError, match="rows"):
            dequantize_rows(attributes | other, (17, 64), *arrays)
