"""What a whole graph is made of, node by node: nothing that a step would pay for needlessly."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest

from asvd_q.models import SourceModel
from asvd_q.plan import QuantSpec
from asvd_q_exporters.onnx import OnnxOptions
from tests.exporters.onnx.conftest import Export, export
from tests.support import hand_made_store, tiny_llama

_BLOCKS = 2
_INT4 = QuantSpec(bits=4, group_size=32)

_OF_THE_MASK = Counter(
    {"Cast": 2, "Shape": 2, "Where": 2, "Concat": 1, "CumSum": 1, "Equal": 1, "Expand": 1}
    | {"ReduceSum": 1, "Sub": 1, "Unsqueeze": 1}
)
_OF_A_BLOCK = Counter({"GroupQueryAttention": 1, "SkipSimplifiedLayerNormalization": 2})
_OF_THE_REST = Counter({"Gather": 1, "SimplifiedLayerNormalization": 1, "MatMul": 1})  # the head


def _exported(folder: Path, rank: int | None, *, merge: bool, hidden: int = 64) -> Export:
    source = SourceModel.open(str(tiny_llama(folder / "model", hidden=hidden)))
    store = hand_made_store(folder / "store", source, lambda *_: (rank, _INT4))
    return export(store, folder / "onnx", OnnxOptions(merge_products=merge))


def _optimized(folder: Path) -> Counter[str]:
    """Operators as ONNX Runtime runs them, with what it folds and fuses when it loads the file."""
    from onnxruntime import InferenceSession

    from asvd_q_exporters.onnx.session import PROVIDERS, session_options

    options = session_options()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    InferenceSession(folder / "model.onnx", options, providers=PROVIDERS)
    graph = onnx.load(folder / "optimized.onnx").graph
    return Counter(node.op_type for node in graph.node)


@pytest.mark.parametrize(
    ("rank", "merge", "block"),
    [
        # q, k and v in one product that attention reads.
        (None, False, Counter({"MatMulNBits": 5})),
        # And gate and up in one that is split.
        (None, True, Counter({"MatMulNBits": 4, "Split": 1})),
        # B of q, k and v in one product, B of gate and up in one; every A for itself.
        (32, False, Counter({"MatMulNBits": 11, "Split": 2})),
    ],
    ids=["dense", "dense, merged", "factors"],
)
def test_a_graph_has_no_node_too_many(
    rank: int | None, merge: bool, block: Counter[str], tmp_path: Path
) -> None:
    gated = Counter({"QuickGelu": 1, "Mul": 1})
    counts = _optimized(_exported(tmp_path, rank, merge=merge).folder)
    wanted = _OF_THE_MASK + _OF_THE_REST
    for _ in range(_BLOCKS):
        wanted += _OF_A_BLOCK + block + gated
    assert counts == wanted


def test_tables_of_angles_are_computed_in_three_steps(tmp_path: Path) -> None:
    """Each step's result stays in memory, as long as the context: no axis is cut off at the end."""
    folder = _exported(tmp_path, None, merge=False, hidden=128).folder
    written = onnx.load(folder / "model.onnx").graph
    makers = {name: node for node in written.node for name in node.output}
    attention = next(node for node in written.node if node.op_type == "GroupQueryAttention")
    cos, sin = (makers[name] for name in attention.input[7:9])
    assert (cos.op_type, sin.op_type) == ("Cos", "Sin")
    assert cos.input[:] == sin.input[:]
    assert makers[cos.input[0]].op_type == "Mul"
    constants = {tensor.name: list(tensor.dims) for tensor in written.initializer}
    positions, frequencies = (constants[name] for name in makers[cos.input[0]].input)
    assert positions == [128, 1]
    assert len(frequencies) == 1
