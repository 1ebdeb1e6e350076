"""Packing against an independent unpacker, and against gptqmodel's own code."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from asvd_q.plan import QuantSpec
from asvd_q.quantization import QuantizedWeight, quantize
from asvd_q_exporters._runner import quiet
from asvd_q_exporters.gptq.layout import GROUP_SIZES, packed_layout
from asvd_q_exporters.gptq.pack import pack_rows, pack_weight
from asvd_q_exporters.gptq.unpack import unpack_matrix, unpack_rows

SHAPES = [(32, 32), (160, 96), (64, 352)]
BITS = [2, 3, 4, 8]


def random_codes(
    shape: tuple[int, int], spec: QuantSpec, *, act_order: bool = False
) -> QuantizedWeight:
    """A weight whose codes, scales and zero points are all random, the extremes among them."""
    generator = torch.Generator().manual_seed(sum(shape) + spec.bits)
    top = (1 << spec.bits) - 1
    groups = (shape[0], spec.groups(shape[1]))
    codes = torch.randint(0, top + 1, shape, generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, top + 1, groups, generator=generator, dtype=torch.uint8)
    zeros[0], zeros[-1] = 0, top
    return QuantizedWeight(
        codes=codes,
        scales=(torch.rand(groups, generator=generator) + 0.01).to(torch.float16),
        zeros=None if spec.symmetric else zeros,
        spec=spec,
        permutation=torch.randperm(shape[1], generator=generator).int() if act_order else None,
    )


def as_numpy(tensors: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rows", [32, 96, 352])
def test_rows_round_trip(bits: int, rows: int) -> None:
    values = torch.randint(0, 1 << bits, (rows, 5), generator=torch.Generator().manual_seed(rows))
    words = pack_rows(values, bits)
    assert words.dtype == torch.int32
    assert words.shape == (rows * bits // 32, 5)
    assert np.array_equal(unpack_rows(words.numpy(), bits), values.numpy())


def test_a_word_by_hand() -> None:
    """Low bits first; the eleventh 3-bit value begins in one word and ends in the next."""
    values = torch.zeros(32, 1, dtype=torch.int64)
    values[0], values[1], values[10] = 5, 1, 0b110
    first, second, third = (int(word) & 0xFFFFFFFF for word in pack_rows(values, 3)[:, 0])
    assert first == 5 | 1 << 3 | 0b10 << 30
    assert (second, third) == (1, 0)
    assert int(pack_rows(torch.full((32, 1), 15), 4)[0, 0]) == -1


def test_rows_that_leave_a_word_unfilled_are_refused() -> None:
    with pytest.raises(ValueError, match="33 rows"):
        pack_rows(torch.zeros(33, 2), 4)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_matrices_round_trip(bits: int, group_size: int, symmetric: bool, act_order: bool) -> None:
    spec = QuantSpec(bits=bits, group_size=group_size, symmetric=symmetric)
    for shape in SHAPES:
        weight = random_codes(shape, spec, act_order=act_order)
        for offset in (0, 1) if symmetric else (0,):
            tensors = pack_weight(weight, zero_offset=offset)
            found = unpack_matrix(as_numpy(tensors), bits, offset)
            assert np.array_equal(found, weight.dequantize().numpy())
        layout = packed_layout(shape, spec)
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
            name: getattr(layout, name) for name in tensors
        }
        assert layout.nbytes == sum(tensor.nbytes for tensor in tensors.values())


def test_the_first_version_has_no_place_for_a_zero_point_of_zero() -> None:
    weight = random_codes((32, 32), QuantSpec(bits=4, group_size=32, symmetric=False))
    with pytest.raises(ValueError, match="zero point of 0"):
        pack_weight(weight, zero_offset=1)


@pytest.fixture(scope="module")
def torch_linear() -> type:
    """gptqmodel's portable layer."""
    pytest.importorskip("optimum")
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    with quiet():
        qlinear = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch")
    found: type = qlinear.TorchLinear
    return found


def empty_layer(torch_linear: type, shape: tuple[int, int], spec: QuantSpec) -> Any:
    return torch_linear(
        bits=spec.bits,
        group_size=spec.group_size,
        sym=spec.symmetric,
        desc_act=False,
        in_features=shape[1],
        out_features=shape[0],
        bias=False,
    )


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", BITS)
def test_gptqmodel_reads_the_same_weights(torch_linear: type, bits: int, version: int) -> None:
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    for group_size in (-1, 32, 128):
        spec = QuantSpec(bits=bits, group_size=group_size, symmetric=version == 1)
        for shape in SHAPES:
            weight = random_codes(shape, spec)
            layer = empty_layer(torch_linear, shape, spec)
            tensors = pack_weight(weight, zero_offset=2 - version)
            missing, unexpected = layer.load_state_dict(tensors, strict=False)
            assert (missing, unexpected) == ([], [])
            with quiet():
                if version == 1:
                    convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
                layer.eval().post_init()
            layer.__dict__.pop("dequantize_weight", None)
            layer.scales = layer.scales.float()  # its product is rounded to float16 otherwise
            assert torch.equal(layer.dequantize_weight().T, weight.dequantize())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "packer",
    # The second one compiles a C++ extension when it is first called.
    ["pack_original", pytest.param("pack_block", marks=pytest.mark.slow)],
)
def test_gptqmodel_packs_the_same_bytes(torch_linear: type, packer: str, bits: int) -> None:
    for shape in SHAPES:
        spec = QuantSpec(bits=bits, group_size=32, symmetric=False)
        weight = quantize(torch.randn(shape, generator=torch.Generator().manual_seed(bits)), spec)
        assert isinstance(weight, QuantizedWeight)
        linear = torch.nn.Linear(shape[1], shape[0], bias=False)
        linear.weight.data = weight.dequantize()
        layer = empty_layer(torch_linear, shape, spec)
        with quiet():
            getattr(layer, packer)(
                linear, weight.scales.float(), weight.zero_points().float(), weight.group_index
            )
        ours = pack_weight(weight, zero_offset=0)
        for name in ("qweight", "qzeros", "scales", "g_idx"):
            assert torch.equal(getattr(layer, name), ours[name]), name
