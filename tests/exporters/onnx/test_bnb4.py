"""NF4 in `MatMulBnb4`: single matrices against bitsandbytes, and what an artefact's file holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from asvd_q.plan import QuantSpec
from asvd_q.quantization import quantize
from asvd_q.quantization.nf4 import Nf4Weight
from asvd_q_exporters.onnx import OnnxOptions
from asvd_q_exporters.onnx.bnb4.layout import BLOCK_SIZES, bnb4_layout
from asvd_q_exporters.onnx.bnb4.pack import bnb4_tensor
from asvd_q_exporters.onnx.bnb4.unpack import dequantize
from tests.exporters.onnx.conftest import Export, export
from tests.exporters.onnx.reference import reference_logits, relative, run_operator, tokens
from tests.quantization.nf4_reference import nf4, theirs, weights

SHAPES = [(64, 64), (7, 33), (1, 1), (1, 130), (5, 48), (300, 48), (33, 130), (96, 256), (3, 700)]


@pytest.fixture(autouse=True)
def _not_compiled() -> Iterator[None]:
    """bitsandbytes compiles its way for odd sizes, which takes seconds and changes nothing."""
    with torch.compiler.set_stance("force_eager"):
        yield


def attributes_of(shape: tuple[int, int], spec: QuantSpec) -> dict[str, int]:
    return {"N": shape[0], "K": shape[1], "block_size": spec.group_size, "quant_type": 1}


def tensors_of(weight: Tensor, spec: QuantSpec) -> list[NDArray[Any]]:
    """The operator's inputs, from a quantized matrix."""
    made = quantize(weight, spec)
    return [bnb4_tensor(made, part).numpy() for part in ("packed", "absmax")]


@pytest.mark.parametrize("kind", ["normal", "outliers", "zeros"])
@pytest.mark.parametrize("double", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_runtime_and_unpacker_read_what_bitsandbytes_does_bit_for_bit(
    block: int, double: bool, kind: str
) -> None:
    spec = nf4(block, double)
    for shape in SHAPES:
        weight = weights(shape, kind)
        packed, expected = theirs(weight, spec)
        tensors = tensors_of(weight, spec)
        assert np.array_equal(tensors[0], packed.numpy().ravel())
        assert sum(tensor.nbytes for tensor in tensors) == bnb4_layout(shape, spec).nbytes
        attributes = attributes_of(shape, spec)
        assert np.array_equal(dequantize(attributes, *tensors), expected.numpy())
        columns = run_operator("MatMulBnb4", attributes, tensors, torch.eye(shape[1]))
        assert torch.equal(columns.T, expected), shape


@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_the_runtime_multiplies_in_float32(block: int) -> None:
    spec = nf4(block)
    for shape in SHAPES:
        weight = weights(shape, "outliers")
        _, expected = theirs(weight, spec)
        x = torch.randn(2, 3, shape[1], generator=torch.Generator().manual_seed(0))
        found = run_operator("MatMulBnb4", attributes_of(shape, spec), tensors_of(weight, spec), x)
        assert relative(found.double(), x.double() @ expected.double().T) < 1e-6


@pytest.mark.parametrize("block", [512, 4096])
def test_the_runtime_has_none_of_the_blocks_that_are_refused(block: int) -> None:
    shape, spec = (4, 4096), nf4(block)
    tensors = tensors_of(weights(shape, "normal"), spec)
    with pytest.raises(Exception, match="only block size 16, 32, 64, 128, 256 are supported"):
        run_operator("MatMulBnb4", attributes_of(shape, spec), tensors, torch.ones(1, 4096))


def test_the_first_code_of_a_byte_is_in_its_high_half() -> None:
    attributes = {"N": 1, "K": 3, "block_size": 32, "quant_type": 1}
    packed, absmax = np.array([0xF0, 0x70], dtype=np.uint8), np.array([2.0], dtype=np.float32)
    assert dequantize(attributes, packed, absmax).tolist() == [[2.0, -2.0, 0.0]]
    found = run_operator("MatMulBnb4", attributes, [packed, absmax], torch.eye(3))
    assert found.T.tolist() == [[2.0, -2.0, 0.0]]


def test_the_unpacker_refuses_what_is_not_nf4_or_not_all_there() -> None:
    spec = nf4(32)
    attributes, tensors = attributes_of((4, 33), spec), tensors_of(weights((4, 33), "normal"), spec)
    for other in ({"quant_type": 0}, {"transB": 0}, {"K": 32}, {"block_size": 64}):
        with pytest.raises(ValueError, match=r"NF4|missing"):
            dequantize(attributes | other, *tensors)


def test_integer_codes_are_not_taken_for_nf4() -> None:
    with pytest.raises(ValueError, match="no NF4 codes"):
        bnb4_tensor(quantize(torch.ones(4, 64), QuantSpec(bits=4)), "packed")


def initializers(made: Export) -> dict[str, NDArray[Any]]:
    graph = onnx.load(made.folder / "model.onnx").graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def test_the_file_holds_the_bytes_that_bitsandbytes_makes_of_the_model(nf4_export: Export) -> None:
    store, values = nf4_export.store, initializers(nf4_export)
    checked = 0
    for record in store.records():
        spec = record.quantization.get("weight")
        if spec is None or spec.method != "nf4":
            continue
        packed, _ = theirs(store.source.tensor(f"{record.name}.weight"), spec)
        assert values[f"{record.name}.packed"].tobytes() == packed.numpy().tobytes()
        checked += 1
    assert checked == 5


def test_the_file_holds_the_stores_bytes_and_its_scales_in_float32(nf4_export: Export) -> None:
    values = initializers(nf4_export)
    names = {"weight": "", "A": ".ALinear", "B": ".BLinear"}
    double = 0
    for layer in nf4_export.store.layers():
        for slot, weight in layer.weights.items():
            if not isinstance(weight, Nf4Weight):
                continue
            prefix = layer.record.name + names[slot]
            absmax = values[f"{prefix}.absmax"]
            assert values[f"{prefix}.packed"].tobytes() == weight.packed.numpy().tobytes()
            assert absmax.dtype == np.float32
            assert np.array_equal(absmax, weight.scales().numpy())
            double += bool(weight.spec.double_quant)
    assert double == 6


@pytest.mark.slow
def test_float16_leaves_scales_and_products_of_nf4_in_float32(nf4_export: Export, tmp_path) -> None:
    store = nf4_export.store
    made = export(store, tmp_path / "onnx", OnnxOptions(dtype="float16", accuracy_level=0))
    half, single = initializers(made), initializers(nf4_export)
    names = [name for name in single if name.endswith((".packed", ".absmax"))]
    assert len(names) == 2 * 15
    for name in names:
        assert half[name].dtype == single[name].dtype
        assert np.array_equal(half[name], single[name])
    assert half["model.layers.0.self_attn.q_proj.bias"].dtype == np.float16
    for record in store.records():
        sizes = [
            value.nbytes
            for name, value in half.items()
            if name.startswith(f"{record.name}.") and not name.endswith(".bias")
        ]
        assert made.exporter.stored_bytes(record.as_plan()) == sum(sizes)
    ids = tokens(2, 9)
    found, _ = made.exporter.open(made.folder).forward(ids)
    bounds = made.exporter.bounds_of(store.plan)
    assert relative(found, reference_logits(store, ids)) < bounds.relative_error


def test_the_graph_casts_nothing_where_it_is_float32_anyway(nf4_export: Export) -> None:
    graph = onnx.load(nf4_export.folder / "model.onnx").graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    users = {name: node.op_type for node in graph.node for name in node.input}
    for node in graph.node:
        if node.op_type == "MatMulBnb4":
            assert "Cast" not in (makers[node.input[0]], users[node.output[0]])


def test_every_nf4_matrix_is_one_node(nf4_export: Export) -> None:
    graph = onnx.load(nf4_export.folder / "model.onnx").graph
    found = {
        node.input[1].removesuffix(".packed"): {entry.name: entry.i for entry in node.attribute}
        for node in graph.node
        if node.op_type == "MatMulBnb4"
    }
    expected = {
        f"{record.name}{'' if slot == 'weight' else f'.{slot}Linear'}": attributes_of(shape, spec)
        for record in nf4_export.store.records()
        for slot, shape in record.as_plan().slot_shapes().items()
        if (spec := record.quantization[slot]) is not None and spec.method == "nf4"
    }
    assert found == expected
