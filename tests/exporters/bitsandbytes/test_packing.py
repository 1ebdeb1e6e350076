"""One matrix: our tensors against bitsandbytes' own, and against the unpacker."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asvd_q.plan import QuantSpec
from asvd_q.quantization.nf4 import Nf4Weight, quantize_nf4
from asvd_q.spec import NF4_BLOCKS
from asvd_q_exporters._runner import quiet
from asvd_q_exporters.bitsandbytes.layout import STATE, kernels_take, tensor_shapes
from asvd_q_exporters.bitsandbytes.pack import pack_weight
from asvd_q_exporters.bitsandbytes.unpack import unpack_matrix

SHAPES = [(1, 1), (33, 31), (64, 96), (5, 4099), (32, 4096)]

with quiet():
    bitsandbytes: Any = pytest.importorskip("bitsandbytes")


def matrix(shape: tuple[int, int]) -> Tensor:
    """Random, with outliers and dead channels."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    weight[:, ::7] *= 1000
    weight[1::5] = 0
    return weight


def packed(shape: tuple[int, int], block: int, double: bool) -> tuple[Nf4Weight, dict[str, Tensor]]:
    weight = quantize_nf4(
        matrix(shape), QuantSpec(method="nf4", group_size=block, double_quant=double)
    )
    return weight, pack_weight(weight, "float32")


def loaded(tensors: dict[str, Tensor]) -> Any:
    """The parameter that transformers makes of a checkpoint's tensors."""
    rest = {name: tensor for name, tensor in tensors.items() if name != "weight"}
    return bitsandbytes.nn.Params4bit.from_prequantized(
        data=tensors["weight"], quantized_stats=rest, device="cpu"
    )


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block", NF4_BLOCKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bitsandbytes_and_the_unpacker_read_the_same_weights(
    shape: tuple[int, int], block: int, double: bool
) -> None:
    weight, tensors = packed(shape, block, double)
    sizes = {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }
    assert sizes == tensor_shapes(shape, weight.spec, "float32")
    arrays = {
        name.removeprefix("weight").removeprefix("."): t.numpy() for name, t in tensors.items()
    }
    state = json.loads(arrays.pop(STATE.removeprefix("weight.")).tobytes())
    expected = weight.dequantize()
    assert np.array_equal(unpack_matrix(state, arrays), expected.numpy())
    parameter = loaded(tensors)
    assert tuple(parameter.quant_state.shape) == shape
    if kernels_take(shape, weight.spec):
        with torch.compiler.set_stance("force_eager"):  # wide blocks take a compiled kernel
            found = bitsandbytes.functional.dequantize_4bit(parameter.data, parameter.quant_state)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("double", [False, True])
def test_the_tensors_are_those_that_a_layer_saves(double: bool, dtype: Any) -> None:
    """Byte for byte, but for blanks after the JSON of double quantization."""
    shape = (64, 128)
    source = matrix(shape).clamp(-9, 9).to(getattr(torch, dtype))
    layer = bitsandbytes.nn.Linear4bit(
        128, 64, bias=False, quant_type="nf4", compress_statistics=double
    )
    layer.weight = bitsandbytes.nn.Params4bit(
        source, quant_type="nf4", compress_statistics=double, module=layer
    )
    saved = layer.to("cpu").state_dict()
    spec = QuantSpec(method="nf4", group_size=64, double_quant=double)
    ours = pack_weight(quantize_nf4(source, spec), dtype)
    assert ours.keys() == saved.keys()
    for name, tensor in saved.items():
        found = ours[name]
        if double and name == STATE:
            padding = found[len(tensor) :].tolist()
            assert padding == [ord(" ")] * len(padding)
            found = found[: len(tensor)]
        assert torch.equal(found, tensor), name
        assert found.dtype == tensor.dtype


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((32, 64), 64),
        ((96, 160), 32),
        ((64, 96), 64),
        ((48, 64), 64),
        ((32, 32), 64),
        ((33, 64), 32),
        ((64, 48), 32),
    ],
)
def test_the_kernels_take_what_we_say(shape: tuple[int, int], block: int) -> None:
    """The preparation for the one of AVX512-BF16, which runs on any CPU, raises for all others."""
    weight = quantize_nf4(matrix(shape), QuantSpec(method="nf4", group_size=block))
    parameter = loaded(pack_weight(weight, "float32"))
    convert = bitsandbytes.functional._convert_weight_packed_for_cpu
    try:
        convert(parameter.data, parameter.quant_state)
        taken = True
    except (AssertionError, RuntimeError):
        taken = False
    assert taken is kernels_take(shape, weight.spec)


def test_damaged_tensors_are_not_read() -> None:
    _, tensors = packed((8, 64), 32, False)
    state = {"quant_type": "nf4", "blocksize": 32, "shape": [8, 64]}
    arrays = {"": tensors["weight"].numpy(), "quant_map": tensors["weight.quant_map"].numpy()}
    scales = tensors["weight.absmax"].numpy()
    assert unpack_matrix(state, arrays | {"absmax": scales}).shape == (8, 64)
    with pytest.raises(ValueError, match="missing"):
        unpack_matrix(state, arrays | {"absmax": scales[:-1]})
    with pytest.raises(ValueError, match="not NF4"):
        unpack_matrix(state | {"quant_type": "fp4"}, arrays | {"absmax": scales})
