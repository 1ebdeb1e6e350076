"""Whole artefacts in standard operators: no other domain, any evaluator, proof at its own level."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx.reference import ReferenceEvaluator

from asvd_q.evaluation.proof import prove
from asvd_q.evaluation.runners import artefact_runner, model_runner
from asvd_q.models import SourceModel
from asvd_q.pipeline import run
from asvd_q.plan import QuantSpec
from asvd_q.recipe import load_recipe
from asvd_q.store import Store
from asvd_q_exporters.onnx import OnnxOptions
from tests.exporters.checkpoints import assert_reads_back
from tests.exporters.corrections import Choice, Corrected, corrected_store
from tests.exporters.onnx.conftest import Export, export
from tests.exporters.onnx.reference import reference_logits, relative, tokens
from tests.exporters.sizes import assert_sizes
from tests.support import WREN, hand_made_store, tiny_llama, tiny_recipe

W2 = QuantSpec(bits=2, group_size=16, symmetric=False)
W3 = QuantSpec(bits=3, group_size=32)
I8 = QuantSpec(bits=8, group_size=-1)


def feeds(
    graph: onnx.GraphProto, ids: torch.Tensor, past: Mapping[str, np.ndarray[Any, Any]] | None
) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs of one step, by the names the graph has; a past of None is an empty one."""
    batch, new = ids.shape
    before = 0 if past is None else next(iter(past.values())).shape[2]
    values: dict[str, np.ndarray[Any, Any]] = {
        "input_ids": ids.numpy(),
        "attention_mask": np.ones((batch, before + new), np.int64),
        "position_ids": np.broadcast_to(np.arange(before, before + new), (batch, new)),
    }
    for one in graph.input:
        if one.name.startswith("past_key_values."):
            heads, width = (one.type.tensor_type.shape.dim[axis].dim_value for axis in (1, 3))
            empty = np.zeros((batch, heads, 0, width), np.float32)
            values[one.name] = empty if past is None else past[one.name]
    return {one.name: values[one.name] for one in graph.input}


def domains(model: onnx.ModelProto) -> set[str]:
    return {one.domain for one in model.opset_import} | {node.domain for node in model.graph.node}


@pytest.mark.parametrize("opset", [21, 23])
def test_the_graph_has_standard_operators_alone(
    standard_store: Store, standard: Export, tmp_path: Path, opset: int
) -> None:
    made = standard
    if opset != 21:
        options = standard.exporter.options.model_copy(update={"opset": opset})
        made = export(standard_store, tmp_path / "onnx", options)
    model = onnx.load(made.folder / "model.onnx")
    assert domains(model) == {""}
    assert not model.functions
    (imported,) = model.opset_import
    assert imported.version == opset
    ids = tokens(2, 9)
    found, _ = made.exporter.open(made.folder).forward(ids)
    assert relative(found, reference_logits(made.store, ids)) < 1e-5


def test_onnx_itself_computes_the_logits(standard: Export) -> None:
    """Its evaluator is numpy, and shares nothing with ONNX Runtime; prefill, then a step."""
    model = onnx.load(standard.folder / "model.onnx")
    evaluator = ReferenceEvaluator(model)
    ids = tokens(2, 7)
    logits, *present = evaluator.run(None, feeds(model.graph, ids[:, :6], None))
    names = [one.name for one in model.graph.input if one.name.startswith("past")]
    past = dict(zip(names, present, strict=True))
    last, *_ = evaluator.run(None, feeds(model.graph, ids[:, 6:], past))
    found = torch.from_numpy(np.concatenate([logits, last], axis=1))
    assert relative(found, reference_logits(standard.store, ids)) < 1e-5


def test_initializers_are_narrow_and_symmetric_ones_signed(standard: Export) -> None:
    graph = onnx.load(standard.folder / "model.onnx").graph
    types = {one.name: onnx.TensorProto.DataType.Name(one.data_type) for one in graph.initializer}
    attention = "model.layers.{}.self_attn.{}".format
    assert types[f"{attention(0, 'q_proj')}.codes"] == "INT4"
    assert f"{attention(0, 'q_proj')}.zero_points" not in types
    for part in ("codes", "zero_points"):
        assert types[f"{attention(0, 'k_proj')}.{part}"] == "UINT8"
        assert types[f"{attention(0, 'v_proj')}.ALinear.{part}"] == "UINT4"
        assert types[f"{attention(1, 'q_proj')}.{part}"] == "UINT4"
    assert types[f"{attention(1, 'o_proj')}.codes"] == "INT8"


@pytest.mark.slow
def test_4_bits_outside_the_graph_are_read_back_and_run(
    standard_store: Store, standard: Export, tmp_path: Path
) -> None:
    options = standard.exporter.options.model_copy(update={"external_data": True})
    made = export(standard_store, tmp_path / "onnx", options)
    assert (made.folder / "model.onnx_data").is_file()
    assert_reads_back(made.exporter, made.store, made.folder)
    assert_sizes(made.exporter, made.store, made.folder)
    ids = tokens(1, 5)
    (found,), (inside,) = (
        list(one.exporter.open(one.folder).score([ids])) for one in (made, standard)
    )
    assert torch.equal(found, inside)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sessions_are_set_to_the_recorded_level(
    standard_store: Store, tmp_path: Path, dtype: Literal["float32", "float16"]
) -> None:
    """Only a fused kernel rounds activations, and the file says nothing of it."""
    ids = tokens(2, 9)
    expected = reference_logits(standard_store, ids)
    errors = {}
    for level in (0, 4):
        options = OnnxOptions.model_validate(
            {"operators": "standard", "accuracy_level": level, "dtype": dtype}
        )
        made = export(standard_store, tmp_path / f"level{level}", options)
        runner = artefact_runner(made.folder)  # as `evaluate` opens it
        errors[level] = relative(next(iter(runner.score([ids]))), expected)
    assert errors[0] < (1e-5 if dtype == "float32" else 1e-2)
    assert 4e-3 < errors[4] < 0.2
    assert errors[4] > 2 * errors[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "symmetric", "dtype", "level"),
    [
        (bits, symmetric, dtype, level if bits % 4 else 4 - level)
        for bits, symmetric in [(2, True), (3, False), (4, True), (4, False), (6, True), (8, False)]
        for dtype, level in [("float32", 0), ("float16", 4)]
    ],
)
def test_a_real_model_is_proven(
    tmp_path: Path, bits: int, symmetric: bool, dtype: str, level: int
) -> None:
    source = SourceModel.open(str(WREN))
    spec = QuantSpec(bits=bits, group_size=32, symmetric=symmetric)
    store = hand_made_store(
        tmp_path / "store", source, lambda name, _: (64 if "mlp" in name else None, spec)
    )
    options = {"operators": "standard", "accuracy_level": level, "dtype": dtype}
    made = export(store, tmp_path / "onnx", OnnxOptions.model_validate(options))
    text = "Once there was a little bird who lived in a tall tree. Every day she sang. " * 8
    ids = source.tokenizer(text, return_tensors="pt").input_ids
    reference = model_runner(store.source, store.replaced)
    proof = prove(made.exporter, made.folder, store, reference, ids)
    assert proof.status == "proven"


@pytest.mark.slow
def test_corrections_with_a_common_factor_are_proven(tmp_path: Path) -> None:
    kinds: dict[str, Choice] = {
        "q_proj": Corrected(W2, 16, I8, I8, "attention"),
        "k_proj": Corrected(W3, 16, I8, W2, "attention"),
        "v_proj": Corrected(W3, 16, I8, None, "attention"),
        "o_proj": Corrected(W2, 7),
        "gate_proj": Corrected(W3, 8, None, I8, "mlp"),
        "up_proj": Corrected(W3, 8, None, None, "mlp"),
        "down_proj": W3,
    }
    source = SourceModel.open(str(tiny_llama(tmp_path / "model", attention_bias=True)))
    store = corrected_store(tmp_path / "store", source, lambda name: kinds[name.rpartition(".")[2]])
    options = OnnxOptions(operators="standard", accuracy_level=0)
    made = export(store, tmp_path / "onnx", options)
    blocks = [f"model.layers.{index}" for index in (0, 1)]
    groups = [tuple(f"{block}.self_attn.{one}_proj" for one in "qkv") for block in blocks]
    groups += [tuple(f"{block}.mlp.{one}_proj" for one in ("gate", "up")) for block in blocks]
    plan = store.plan.model_copy(update={"one_factor": tuple(groups)})
    assert_sizes(made.exporter, store, made.folder, plan)
    reference = model_runner(store.source, store.replaced)
    proof = prove(made.exporter, made.folder, store, reference, tokens(2, 12))
    assert proof.status == "proven"
    graph = onnx.load(made.folder / "model.onnx").graph
    # Seven matrices and what q, k, v, gate hold of B and A; q, k and v have one B together.
    count = sum(node.op_type == "DequantizeLinear" for node in graph.node)
    assert count == 2 * (7 + 1 + 2 + 1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_run_is_proven_at_the_recipes_level(tmp_path: Path, dtype: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    sections = tiny_recipe(tmp_path, blocks=1) | {
        "output": str(tmp_path / "run"),
        "decompose": {"kept_ratio": 0.6, "rank_multiple": 16},
        "quantize": {"bits": 4, "group_size": 16},
        "export": [
            {"format": "onnx", "operators": "standard", "accuracy_level": 0, "dtype": dtype}
        ],
    }
    recipe.write_text(yaml.safe_dump(sections), encoding="utf-8")
    record = run(load_recipe(recipe), lambda stage, done, total: None)
    (artefact,) = record.artefacts
    assert artefact.proof.status == "proven"
    assert (artefact.options["operators"], artefact.options["accuracy_level"]) == ("standard", 0)
    assert artefact.proof.relative_error < (1e-5 if dtype == "float32" else 1e-2)
    model = onnx.load(tmp_path / "run/artefacts/onnx/model.onnx")
    assert domains(model) == {""}
