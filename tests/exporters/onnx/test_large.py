"""Weights beyond what a protobuf file holds, and places in a file that 32 bits cannot say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir
import pytest
import torch

from asvd_q.errors import ExportError
from asvd_q_exporters.onnx import OnnxOptions
from asvd_q_exporters.onnx.save import save, saved_bytes
from tests.exporters.checkpoints import assert_reads_back
from tests.exporters.onnx.conftest import export
from tests.exporters.onnx.reference import reference_logits, relative
from tests.exporters.sizes import assert_sizes
from tests.support import QuantSpec, SourceModel, hand_made_store, tiny_llama

_MIB = 2**20
_GIB = 2**30


def unread(name: str, size: int) -> tuple[str, onnx_ir.TensorProtocol]:
    """A tensor of so many bytes, whose values are never to be asked for."""

    def evaluate() -> onnx_ir.TensorProtocol:
        raise AssertionError(f"{name} was read")

    shape = onnx_ir.Shape((size,))
    return name, onnx_ir.LazyTensor(evaluate, onnx_ir.DataType.UINT8, shape, name=name)


@pytest.mark.parametrize(
    ("external_data", "sizes", "outside"),
    [
        ("auto", [32 * _MIB, 32 * _MIB], 0),
        ("auto", [32 * _MIB, 32 * _MIB + 1], 64 * _MIB + 1),
        ("auto", [3 * _GIB, 1023, 5 * _GIB], 8 * _GIB),
        (True, [1024, 1024], 2048),
        (True, [1000, 1023], 0),  # small tensors stay in the graph
        (True, [3 * _GIB + 1, 1024], 3 * _GIB + 64 + 1024),
        (False, [1 * _GIB, 1 * _GIB - 16 * _MIB], 0),
    ],
)
def test_where_weights_lie(external_data: bool | str, sizes: list[int], outside: int) -> None:
    tensors = [unread(str(index), size) for index, size in enumerate(sizes)]
    inside, found = saved_bytes(tensors, external_data)
    assert found == outside
    held = sum(sizes) if not outside else sum(size for size in sizes if size < 1024)
    assert held < inside < held + 120 * len(sizes)
    assert inside < 2 * _GIB


@pytest.mark.parametrize("sizes", [[_GIB, _GIB - 16 * _MIB + 1], [9 * _GIB]])
def test_what_no_protobuf_file_holds_is_refused_before_it_is_read(
    sizes: list[int], tmp_path: Path
) -> None:
    tensors = [unread(str(index), size) for index, size in enumerate(sizes)]
    graph = onnx_ir.Graph([], [], nodes=[], opset_imports={"": 21})
    for name, tensor in tensors:
        graph.initializers[name] = onnx_ir.Value(name=name, const_value=tensor)
    message = r"weights of \d\.\d GiB, because an ONNX file ends at 2 GiB; use auto"
    with pytest.raises(ExportError, match=message):
        saved_bytes(tensors, False)
    with pytest.raises(ExportError, match=message):
        save(onnx_ir.Model(graph, ir_version=10), tmp_path, False)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def emptied(tmp_path: Path) -> Iterator[Path]:
    """A folder of which nothing is kept: pytest keeps those of its last three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_a_model_beyond_2_gib_is_written_run_and_read_back(emptied: Path) -> None:
    """Its embedding alone is larger, so that matrices behind it lie beyond 2^31 bytes."""
    vocabulary = 2**31 // (64 * 4) + 2**17
    model = tiny_llama(emptied / "model", vocabulary=vocabulary, tied=True, dtype=torch.bfloat16)
    store = hand_made_store(
        emptied / "store",
        SourceModel.open(str(model)),
        lambda name, _: (24 if "mlp" in name else None, QuantSpec(bits=4, group_size=32)),
    )
    made = export(store, emptied / "onnx", OnnxOptions(accuracy_level=0))
    assert (made.folder / "model.onnx").stat().st_size < 64 * _MIB
    graph = onnx.load(made.folder / "model.onnx", load_external_data=False).graph
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in graph.initializer
        if tensor.external_data
    }
    offsets = {name: int(place["offset"]) for name, place in places.items()}
    assert any(name.endswith(".codes") for name, offset in offsets.items() if offset > 2**31)
    assert_sizes(made.exporter, store, made.folder)
    assert_reads_back(made.exporter, store, made.folder)
    # The last rows of the embedding lie beyond 2^31 bytes too.
    ids = torch.tensor([[1, vocabulary - 1, vocabulary // 2, vocabulary - 2**16]])
    runner = made.exporter.open(made.folder)
    logits, cache = runner.forward(ids[:, :3])
    last, _ = runner.forward(ids[:, 3:], cache)
    del runner, cache
    expected = reference_logits(store, ids)
    assert relative(torch.cat([logits, last], dim=1), expected) < 1e-5
