"""What is timed is what would be exported; and the runtime's profile is read for what it says."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest

from asvd_q.errors import ExportError
from asvd_q.plan import LayerPlan, QuantSpec
from asvd_q_exporters.onnx import OnnxExporter, OnnxOptions, timing
from asvd_q_exporters.onnx.nodes import MatrixNode, float_node
from asvd_q_exporters.onnx.timing import node_seconds, typical
from tests.exporters.onnx.conftest import Export

_ZEROS = QuantSpec(bits=3, group_size=16, symmetric=False)
_KINDS = [
    None,
    QuantSpec(bits=2, group_size=32),
    QuantSpec(bits=4, group_size=-1),
    QuantSpec(bits=8, group_size=64, symmetric=False),
    _ZEROS,
    QuantSpec(method="nf4", bits=4, group_size=64),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixed", "nf4_export", "standard"])
def test_nodes_are_those_of_the_exported_graph(name: str, request: pytest.FixtureRequest) -> None:
    """Operator, attributes, and the shape and type of every initializer."""
    made: Export = request.getfixturevalue(name)
    graph = onnx.load(made.folder / "model.onnx").graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    using = {one: node for node in graph.node for one in node.input if one in tensors}
    modules = {"weight": "", "B": ".BLinear", "A": ".ALinear"}
    for record in made.store.records():
        layer = record.as_plan()
        for slot, shape in layer.slot_shapes().items():
            prefix = f"{layer.name}{modules[slot]}."
            first = next(one for one in tensors if one.startswith(prefix) and ".bias" not in one)
            node = using[first]
            expected = made.exporter._node(shape, layer.quantization[slot])
            assert (node.op_type, node.domain) == (expected.operator, expected.domain)
            found = {one.name: one.i for one in node.attribute}
            assert found == dict(expected.attributes)
            held = [one for one in node.input if one in tensors and not one.endswith(".bias")]
            parts = [tensors[one] for one in held]
            assert [tuple(part.dims) for part in parts] == [part.shape for part in expected.parts]
            types = [onnx.helper.tensor_dtype_to_np_dtype(part.data_type) for part in parts]
            assert types == [np.dtype(part.type) for part in expected.parts]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(64, 96), (7, 33), (1, 1)])
def test_bytes_of_a_node_are_those_of_the_format(shape: tuple[int, int], dtype: str) -> None:
    exporter = OnnxExporter(OnnxOptions.model_validate({"dtype": dtype}))
    for spec in _KINDS:
        node = exporter._node(shape, spec)
        layer = LayerPlan(name="q", kind="q", block=0, shape=shape, quantization={"weight": spec})
        assert node.nbytes == exporter.stored_bytes(layer)
        assert (node.rows, node.columns) == shape


@pytest.mark.parametrize(
    "options",
    [{}, {"accuracy_level": 0}, {"dtype": "float16", "accuracy_level": 0, "opset": 23}],
)
def test_times_are_above_0_and_in_order(options: dict[str, object]) -> None:
    exporter = OnnxExporter(OnnxOptions.model_validate(options))
    matrices = [(shape, spec) for shape in [(64, 96), (33, 7)] for spec in _KINDS]
    seconds = exporter.decode_seconds([*matrices, *matrices[::-1]])
    assert min(seconds) > 0
    assert seconds[: len(matrices)] == seconds[: len(matrices) - 1 : -1]  # measured once


def test_what_shares_a_kernel_has_one_name_and_one_time() -> None:
    exporter = OnnxExporter()
    three, four = QuantSpec(bits=3, group_size=32), QuantSpec(bits=4, group_size=32)
    gptq = QuantSpec(method="gptq", bits=4, group_size=32)
    assert len({exporter.kernel((64, 96), spec) for spec in (three, four, gptq)}) == 1
    distinct = [exporter.kernel((64, 96), spec) for spec in _KINDS]
    distinct += [exporter.kernel((96, 64), spec) for spec in _KINDS]
    symmetric = _ZEROS.model_copy(update={"symmetric": True})
    distinct.append(exporter.kernel((64, 96), symmetric))
    coarse = OnnxExporter(OnnxOptions(accuracy_level=0))
    distinct.append(coarse.kernel((64, 96), _ZEROS))
    assert len(set(distinct)) == len(distinct)
    one, other = exporter.decode_seconds([((64, 96), three), ((64, 96), gptq)])
    assert one == other


def test_more_weights_than_one_graph_takes_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [float_node((rows, 64), "float32") for rows in range(10, 20)]
    chunks: list[list[MatrixNode]] = []

    def measure(chunk: list[MatrixNode], dtype: str, opset: int) -> list[float]:
        chunks.append(chunk)
        return [float(node.rows) for node in chunk]

    monkeypatch.setattr(timing, "_AT_ONCE", 40 * 64 * 4)
    monkeypatch.setattr(timing, "_measure", measure)
    assert node_seconds(nodes, "float32", 21) == [float(rows) for rows in range(10, 20)]
    assert [len(chunk) for chunk in chunks] == [3, 2, 2, 2, 1]


def test_a_single_matrix_too_large_for_one_graph_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "_AT_ONCE", 1)
    assert min(node_seconds([float_node((8, 64), "float32")] * 2, "float32", 21)) > 0


def test_the_profile_of_idle_nodes_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = {
        "empty": [6.0] * 40,
        "0": [16.0] * 12 + [900.0, 15.0, 17.0],
        "1": [6.0] * 15,
        "2": [10.0] * 15,
        "2/in": [7.0] * 15,
    }
    monkeypatch.setattr(timing, "_profile", lambda model, level: profile)
    nodes = [float_node((8, 64), "float32")] * 3
    found = node_seconds(nodes, "float32", 21)
    assert found == pytest.approx([10e-6, 1e-7, 5e-6])
    with pytest.raises(ExportError, match="does not name its kernel for MatMul 8x64 float32"):
        node_seconds([*nodes, nodes[0]], "float32", 21)


def test_typical_is_deaf_to_outliers_and_finer_than_the_clock() -> None:
    assert typical([5.0]) == 5.0
    assert typical([5, 6, 5, 6, 5, 6, 4000, 1]) == pytest.approx(5.5)


def test_naming_a_kernel_loads_no_runtime() -> None:
    code = (
        "import sys\n"
        "from asvd_q_exporters.onnx import OnnxExporter\n"
        "from asvd_q.plan import QuantSpec\n"
        "OnnxExporter().kernel((64, 96), QuantSpec())\n"
        "assert OnnxExporter().runtime.startswith('onnxruntime ')\n"
        "assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_matrix_that_no_file_holds_is_timed_by_some_of_its_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asvd_q_exporters.onnx.exporter._LARGEST", 64 * 256)
    seen: list[tuple[int, int]] = []

    def measured(nodes: Any, dtype: Any, opset: Any) -> list[float]:
        seen.extend((node.rows, node.columns) for node in nodes)
        return [1.0] * len(nodes)

    monkeypatch.setattr("asvd_q_exporters.onnx.timing.node_seconds", measured)
    found = OnnxExporter().decode_seconds([((640, 256), None), ((32, 256), None)])
    assert seen == [(64, 256), (32, 256)]
    assert found == [10.0, 1.0]
