"""Matrices in `DequantizeLinear`: against ONNX's own evaluator, the runtime, the unpacker."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q.quantization import QuantizedWeight, quantize
from asvd_q_exporters.onnx import OnnxExporter, OnnxOptions
from asvd_q_exporters.onnx.qdq.layout import QdqLayout, qdq_layout
from asvd_q_exporters.onnx.qdq.pack import qdq_tensor
from asvd_q_exporters.onnx.qdq.unpack import dequantize
from asvd_q_exporters.onnx.session import PROVIDERS, session_options
from tests.exporters.onnx.reference import relative


def made(
    bits: int, group: int, symmetric: bool, shape: tuple[int, int], outliers: bool = False
) -> QuantizedWeight:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits))
    if outliers:
        weight[:, 0] *= 1000
        weight[0] = 0
    # A searched range turns symmetric grids round where that pays: scales of both signs.
    spec = QuantSpec(bits=bits, group_size=group, symmetric=symmetric, clip="mse")
    quantized = quantize(weight, spec)
    assert isinstance(quantized, QuantizedWeight)
    return quantized


def initializers(weight: QuantizedWeight) -> tuple[QdqLayout, list[onnx.TensorProto]]:
    layout = qdq_layout(weight.shape, weight.spec)
    sizes = {"codes": layout.codes_shape, "scales": layout.scales_shape}
    if layout.zero_points:
        sizes["zero_points"] = layout.scales_shape
    found = []
    for part, dims in sizes.items():
        word = "float" if part == "scales" else layout.code_type
        values = qdq_tensor(weight, part, torch.float32).contiguous().numpy()
        kind = TensorProto.DataType.Value(word.upper())
        found.append(TensorProto(name=part, dims=dims, data_type=kind, raw_data=values.tobytes()))
    assert sum(len(tensor.raw_data) for tensor in found) == layout.nbytes(4)
    return layout, found


def model_of(weight: QuantizedWeight) -> onnx.ModelProto:
    """y = x Wᵀ, and the matrix itself where nothing but the two nodes is wanted."""
    layout, tensors = initializers(weight)
    names = [tensor.name for tensor in tensors]
    nodes = [
        helper.make_node("DequantizeLinear", names, ["w"], **layout.attributes),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    shapes = {"x": (None, layout.columns), "y": (None, layout.rows)}
    ends = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    }
    graph = helper.make_graph(nodes, "one", [ends["x"]], [ends["y"]], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, x: Tensor, level: int) -> Tensor:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(level), providers=PROVIDERS
    )
    (y,) = session.run(None, {"x": x.numpy()})
    return torch.from_numpy(y)


def kernels(model: onnx.ModelProto, folder: Path) -> list[str]:
    """Operators that the runtime makes of a model."""
    options = session_options(4)
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


CASES = [
    (bits, group, symmetric, shape)
    for bits in range(2, 9)
    for symmetric in (True, False)
    for group, shape in [(16, (40, 32)), (32, (17, 24)), (64, (24, 96)), (48, (7, 96))]
] + [
    (4, -1, False, (33, 7)),
    (3, -1, True, (1, 1)),
    (8, 256, True, (9, 512)),
    (2, 128, False, (5, 144)),
]


@pytest.mark.parametrize(("bits", "group", "symmetric", "shape"), CASES)
def test_onnx_the_runtime_and_the_unpacker_read_the_stored_matrix(
    bits: int, group: int, symmetric: bool, shape: tuple[int, int]
) -> None:
    weight = made(bits, group, symmetric, shape, outliers=bits % 2 == 0)
    expected = weight.dequantize()
    layout, tensors = initializers(weight)
    arrays: list[NDArray[Any]] = [numpy_helper.to_array(tensor) for tensor in tensors]
    assert np.array_equal(dequantize(layout.attributes, *arrays), expected)
    model = model_of(weight)
    (matrix,) = ReferenceEvaluator(model).run(["w"], {"x": np.eye(shape[1], dtype=np.float32)})
    assert np.array_equal(matrix.T, expected)
    x = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(0))
    assert relative(run(model, x, 0).double(), x.double() @ expected.double().T) < 1e-6


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 5, 8])
@pytest.mark.parametrize("group", [16, 48, 128, 192, -1])
def test_the_runtime_has_one_kernel_for_both_nodes_at_the_level_of_the_session(
    bits: int, group: int, symmetric: bool, tmp_path: Path
) -> None:
    weight = made(bits, group, symmetric, (48, 768))
    model = model_of(weight)
    assert kernels(model, tmp_path) == ["MatMulNBits"]
    x = torch.randn(5, 768, generator=torch.Generator().manual_seed(0))
    expected = x.double() @ weight.dequantize().double().T
    errors = {level: relative(run(model, x, level).double(), expected) for level in (0, 1, 4)}
    assert errors[0] < 1e-6
    assert errors[1] < 1e-6
    assert 1e-3 < errors[4] < 3e-2


def test_types_containers_and_blocks() -> None:
    def layout(shape: tuple[int, int] = (8, 96), **values: Any) -> QdqLayout:
        return qdq_layout(shape, QuantSpec(**values))

    found = [layout(bits=bits, group_size=32).code_type for bits in range(2, 9)]
    assert found == ["int4"] * 3 + ["int8"] * 4
    found = [layout(bits=bits, group_size=32, symmetric=False).code_type for bits in range(2, 9)]
    assert found == ["uint4"] * 3 + ["uint8"] * 4
    assert layout(bits=4, group_size=-1).attributes == {"axis": 1}
    assert layout(bits=4, group_size=96).scales_shape == (8,)
    assert layout(bits=4, group_size=64).block == 32
    assert layout(bits=4, group_size=48).block == 16
    assert layout((8, 1024), bits=4, group_size=256).block == 256
    with pytest.raises(ValueError, match="groups of 32 and rows of 40"):
        layout((8, 40), bits=4, group_size=32)


def test_codes_lie_along_rows_of_the_stored_matrix_low_half_first() -> None:
    codes = torch.tensor([[1, 2, 3], [4, 5, 15]], dtype=torch.uint8)  # (out, in)
    scales = torch.ones(2, 1, dtype=torch.float16)
    zeros = torch.tensor([[7], [9]], dtype=torch.uint8)
    spec = QuantSpec(bits=4, group_size=-1, symmetric=False)
    weight = QuantizedWeight(codes=codes, scales=scales, zeros=zeros, spec=spec)
    assert qdq_tensor(weight, "codes", torch.float32).tolist() == [0x41, 0x52, 0xF3]
    assert qdq_tensor(weight, "zero_points", torch.float32).tolist() == [0x97]


def plan(spec: QuantSpec, shape: tuple[int, int] = (64, 96)) -> Plan:
    layer = LayerPlan(name="q", kind="q", block=0, shape=shape, quantization={"weight": spec})
    return Plan(float_type="float32", layers=(layer,))


STANDARD = OnnxExporter(OnnxOptions(operators="standard"))


@pytest.mark.parametrize("group", [16, 32, 48, 64, 80, 96, 128, 256, -1])
def test_groups_that_some_block_divides_are_accepted(group: int) -> None:
    assert STANDARD.can_express(plan(QuantSpec(bits=4, group_size=group))) == []


@pytest.mark.parametrize(
    ("group", "columns", "instead"),
    [(20, 100, "-1"), (32, 40, "-1"), (24, 96, "16 or 32 or -1")],
)
def test_ragged_and_narrow_blocks_are_refused(group: int, columns: int, instead: str) -> None:
    (refusal,) = STANDARD.can_express(plan(QuantSpec(bits=4, group_size=group), (64, columns)))
    assert refusal.layer == "q"
    assert f"groups of {group} and rows of {columns}" in refusal.reason
    assert refusal.instead == f"use group_size {instead}"


def test_act_order_is_refused() -> None:
    spec = QuantSpec(method="gptq", group_size=32, act_order=True)
    (refusal,) = STANDARD.can_express(plan(spec))
    assert "act order" in refusal.reason
    permuted = made(4, 32, True, (4, 64))
    parts = permuted.tensors() | {"permutation": torch.arange(64, dtype=torch.int32).flip(0)}
    with pytest.raises(ValueError, match="act order"):
        qdq_tensor(QuantizedWeight.from_tensors(parts, permuted.spec), "codes", torch.float32)


def test_codes_of_an_embedding_are_refused() -> None:
    """ONNX has no operator that dequantizes the rows it looks up and no others."""
    spec = QuantSpec(bits=4, group_size=32)
    layer = plan(spec).layers[0].model_copy(update={"role": "embedding", "block": None})
    (refusal,) = STANDARD.can_express(Plan(float_type="float32", layers=(layer,)))
    assert refusal.layer == "q"
    assert refusal.instead == "leave the embedding in floating point, or set operators: contrib"


@pytest.mark.parametrize("opset", [18, 20])
def test_an_opset_without_blocks_is_refused_where_there_are_codes(opset: int) -> None:
    exporter = OnnxExporter(OnnxOptions(operators="standard", opset=opset))
    (refusal,) = exporter.can_express(plan(QuantSpec(bits=4, group_size=32)))
    assert f"opset {opset}" in refusal.reason
    assert refusal.instead == "set opset: 21 or above, or operators: contrib"
    floats = LayerPlan(name="q", kind="q", block=0, shape=(8, 8), quantization={"weight": None})
    assert exporter.can_express(Plan(float_type="float32", layers=(floats,))) == []


def test_the_unpacker_refuses_what_does_not_fit() -> None:
    layout, tensors = initializers(made(4, 32, False, (8, 96)))
    codes, scales, zeros = map(numpy_helper.to_array, tensors)
    for attributes in ({"axis": 1}, {"axis": 0, "block_size": 16}, {"axis": 1, "block_size": 32}):
        with pytest.raises(ValueError, match="not one value per"):
            dequantize(attributes, codes, scales, zeros)
    for other in (zeros[:1], zeros.astype(np.uint8)):
        with pytest.raises(ValueError, match="zero points"):
            dequantize(layout.attributes, codes, scales, other)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(64, 96), (7, 33), (1, 1), (33, 7)])
def test_bytes_of_a_node_are_those_of_the_format(
    shape: tuple[int, int], dtype: Literal["float32", "float16"]
) -> None:
    exporter = OnnxExporter(OnnxOptions(operators="standard", dtype=dtype))
    for symmetric in (True, False):
        for bits in (3, 8):
            spec = QuantSpec(bits=bits, group_size=-1, symmetric=symmetric)
            layer = plan(spec, shape).layers[0]
            assert exporter._node(shape, spec).nbytes == exporter.stored_bytes(layer)


def test_nodes_are_timed_at_the_level_of_the_session() -> None:
    spec = QuantSpec(bits=4, group_size=32)
    names = set()
    for level in (0, 4):
        options = OnnxOptions.model_validate({"operators": "standard", "accuracy_level": level})
        exporter = OnnxExporter(options)
        names.add(exporter.kernel((64, 96), spec))
        matrices = [((64, 96), spec), ((33, 7), QuantSpec(bits=8, symmetric=False)), ((8, 8), None)]
        assert min(exporter.decode_seconds(matrices)) > 0
    assert names == {
        f"DequantizeLinear 64x96 float32 axis=0 block_size=32 int4 accuracy_level={level}"
        for level in (0, 4)
    }
