"""Artefacts whose embedding is codes, alone or as the output head too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import onnx
import pytest
import torch
import yaml
from onnx import numpy_helper

from asvd_q.errors import ExportError
from asvd_q.pipeline import run
from asvd_q.plan import QuantSpec
from asvd_q.recipe import load_recipe
from asvd_q_exporters.onnx import OnnxExporter, OnnxOptions
from tests.exporters.checkpoints import family, store_of
from tests.exporters.onnx.conftest import Export, export
from tests.exporters.onnx.reference import reference_logits, relative, tokens
from tests.exporters.sizes import assert_sizes
from tests.support import tiny_recipe

SIZES = {
    "vocab_size": 70,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
NAME = "model.embed_tokens"
ASYMMETRIC = QuantSpec(bits=4, group_size=32, symmetric=False)
NARROW = QuantSpec(bits=3, group_size=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Export]:
    """A Llama with codes for its embedding, its layers in floating point; made once each."""
    kept: dict[object, Export] = {}

    def make(spec: QuantSpec, *, tied: bool, **options: Any) -> Export:
        options = {"accuracy_level": 0} | options
        key = (spec, tied, *sorted(options.items()))
        if key not in kept:
            folder = tmp_path_factory.mktemp("embedding")
            source = family(folder / "model", "LlamaForCausalLM", tie_word_embeddings=tied, **SIZES)
            store = store_of(folder / "store", source, lambda name: (None, {}), embedding=spec)
            kept[key] = export(store, folder / "onnx", OnnxOptions(**options))
        return kept[key]

    return make


def initializers(made: Export) -> dict[str, onnx.TensorProto]:
    model = onnx.load(made.folder / "model.onnx")
    return {tensor.name: tensor for tensor in model.graph.initializer}


CASES = [
    # Of 48 columns, blocks of 32 leave a second one half empty.
    pytest.param(QuantSpec(bits=2, group_size=32), True, marks=pytest.mark.slow),
    pytest.param(QuantSpec(bits=2, group_size=16, symmetric=False), False, marks=pytest.mark.slow),
    pytest.param(QuantSpec(bits=3, group_size=-1, symmetric=False), True, marks=pytest.mark.slow),
    pytest.param(NARROW, False),
    pytest.param(ASYMMETRIC, True),
    pytest.param(QuantSpec(bits=4, group_size=32, clip="mse"), False, marks=pytest.mark.slow),
    pytest.param(QuantSpec(bits=8, group_size=16), True, marks=pytest.mark.slow),
    pytest.param(QuantSpec(bits=8, group_size=-1, symmetric=False), False, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("spec", "tied"), CASES)
def test_the_artefact_computes_with_the_stored_codes(
    made: Callable[..., Export], spec: QuantSpec, tied: bool
) -> None:
    found = made(spec, tied=tied)
    assert found.exporter.can_express(found.store.plan) == []
    ids = tokens(2, 9, vocabulary=70)
    runner = found.exporter.open(found.folder)
    parts, cache = [], None
    for chunk in ids.split([5, 1, 3], dim=1):
        logits, cache = runner.forward(chunk, cache)
        parts.append(logits)
    assert relative(torch.cat(parts, dim=1), reference_logits(found.store, ids)) < 1e-5
    matrices = dict(found.exporter.read(found.folder))
    assert next(iter(matrices)) == NAME
    stored = found.store.layer(NAME).weights["weight"].dequantize()
    assert torch.equal(matrices[NAME]["weight"], stored)
    (layer,) = [layer for layer in found.store.plan if layer.name == NAME]
    own = [t for name, t in initializers(found).items() if name.startswith(f"{NAME}.")]
    sizes = sum(numpy_helper.to_array(tensor).nbytes for tensor in own)
    assert found.exporter.stored_bytes(layer) == sizes
    assert_sizes(found.exporter, found.store, found.folder)


@pytest.mark.parametrize("outside", [False, True])
def test_a_tied_matrix_is_in_the_files_once(made: Callable[..., Export], outside: bool) -> None:
    found = made(ASYMMETRIC, tied=True, external_data=outside)
    model = onnx.load(found.folder / "model.onnx", load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    names = ("codes", "scales", "zero_points")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["asvd_q.shared"]) == {
        f"lm_head.{part}": f"{NAME}.{part}" for part in names
    }
    assert not any(name.startswith("lm_head") for name in tensors)
    content = b"".join(
        path.read_bytes() for path in found.folder.iterdir() if "model.onnx" in path.name
    )
    codes = numpy_helper.to_array(tensors[f"{NAME}.codes"], base_dir=str(found.folder))
    assert codes.shape == (70, 2, 16)
    assert content.count(codes.tobytes()) == 1
    (head,) = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    (lookup,) = [node for node in model.graph.node if node.op_type == "GatherBlockQuantized"]
    assert list(head.input[1:]) == [f"{NAME}.{part}" for part in names]
    assert list(lookup.input[2:]) == list(head.input[2:])
    reshapes = [node for node in model.graph.node if lookup.input[0] in node.output]
    if outside:
        assert reshapes == []
        rows = tensors[lookup.input[0]]
        assert tuple(rows.dims) == (70, 32)
        assert rows.external_data == tensors[f"{NAME}.codes"].external_data
    else:
        assert [node.input[0] for node in reshapes] == [f"{NAME}.codes"]
    used = {name for node in model.graph.node for name in node.input}
    assert set(tensors) <= used
    onnx.checker.check_model(str(found.folder / "model.onnx"))


@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.slow), True])
def test_rows_outside_the_graph_give_the_reference_logits(
    made: Callable[..., Export], tied: bool
) -> None:
    found = made(ASYMMETRIC, tied=tied, external_data=True)
    ids = tokens(2, 9, vocabulary=70)
    logits, _ = found.exporter.open(found.folder).forward(ids)
    assert relative(logits, reference_logits(found.store, ids)) < 1e-5
    stored = found.store.layer(NAME).weights["weight"].dequantize()
    assert torch.equal(dict(found.exporter.read(found.folder))[NAME]["weight"], stored)
    assert_sizes(found.exporter, found.store, found.folder)


def test_an_embedding_of_its_own_lies_as_the_operator_reads_it(
    made: Callable[..., Export],
) -> None:
    found = made(NARROW, tied=False)
    tensors = initializers(found)
    assert tuple(tensors[f"{NAME}.codes"].dims) == (70, 32)
    assert f"{NAME}.weight" not in tensors
    assert tuple(tensors["lm_head.weight"].dims) == (48, 70)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_float16_halves_the_scales(made: Callable[..., Export], tied: bool) -> None:
    found = made(ASYMMETRIC, tied=tied, dtype="float16")
    assert initializers(found)[f"{NAME}.scales"].data_type == onnx.TensorProto.FLOAT16
    ids = tokens(2, 9, vocabulary=70)
    logits, _ = found.exporter.open(found.folder).forward(ids)
    assert relative(logits, reference_logits(found.store, ids)) < 1e-2
    stored = found.store.layer(NAME).weights["weight"].dequantize()
    assert torch.equal(dict(found.exporter.read(found.folder))[NAME]["weight"], stored)


def test_only_a_head_rounds_activations(made: Callable[..., Export]) -> None:
    exporter = OnnxExporter(OnnxOptions(accuracy_level=4))
    exact = OnnxExporter(OnnxOptions(accuracy_level=0)).bounds
    assert exporter.bounds_of(made(NARROW, tied=False).store.plan) == exact
    assert exporter.bounds_of(made(ASYMMETRIC, tied=True).store.plan) == exporter.bounds


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (QuantSpec(bits=4, group_size=40), ["blocks of 40", "group_size 32"]),
        (QuantSpec(method="gptq", group_size=16, act_order=True), ["act order", "static_groups"]),
    ],
)
def test_what_no_lookup_can_hold_is_refused(
    made: Callable[..., Export], spec: QuantSpec, words: list[str]
) -> None:
    plan = made(ASYMMETRIC, tied=True).store.plan
    layer = plan.layer(NAME).model_copy(update={"quantization": {"weight": spec}})
    (refusal,) = OnnxExporter().can_express(plan.with_layers({NAME: layer}))
    assert refusal.layer == NAME
    assert "GatherBlockQuantized" in refusal.reason
    for word in words:
        assert word in f"{refusal.reason} {refusal.instead}"


GEMMA3 = {**SIZES, "hidden_size": 52, "head_dim": 12, "sliding_window": 4, "pad_token_id": 0}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_class_that_scales_its_rows_keeps_the_scale(
    tmp_path: Path, dtype: Literal["float32", "float16"]
) -> None:
    source = family(tmp_path / "model", "Gemma3ForCausalLM", tie_word_embeddings=True, **GEMMA3)
    spec = QuantSpec(bits=4, group_size=16)
    store = store_of(tmp_path / "store", source, lambda name: (None, {}), embedding=spec)
    found = export(store, tmp_path / "onnx", OnnxOptions(dtype=dtype, accuracy_level=0))
    ids = tokens(2, 9, vocabulary=70)
    logits, _ = found.exporter.open(found.folder).forward(ids)
    bound = 1e-5 if dtype == "float32" else 1e-2
    assert relative(logits, reference_logits(store, ids)) < bound


class Cubed(torch.nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) ** 3


class Twice(torch.nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class Needy(torch.nn.Embedding):
    def forward(self, input: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(input) + positions


def test_a_factor_is_found_and_anything_else_refused_by_name() -> None:
    from asvd_q_exporters.onnx.gather.embedding import embedding_factor

    def factor(module: torch.nn.Module) -> float | None:
        return embedding_factor("wte", module, torch.float32)

    assert factor(torch.nn.Embedding(5, 8, padding_idx=1)) is None
    assert factor(Twice(5, 8)) == 2
    for module in (Cubed(5, 8), Needy(5, 8), torch.nn.Embedding(5, 8, max_norm=1.0)):
        with pytest.raises(ExportError, match=rf"wte: {type(module).__name__} does more"):
            factor(module)
    with pytest.raises(ExportError, match=r"wte: .*Linear does not"):
        factor(torch.nn.Linear(5, 8))


def test_the_traced_model_holds_no_codes(made: Callable[..., Export]) -> None:
    from asvd_q_exporters.onnx.skeleton import build_skeleton

    store = made(ASYMMETRIC, tied=True).store
    options = OnnxOptions(accuracy_level=0)
    skeleton = build_skeleton(store.finished_plan, store.source, {}, options)
    assert skeleton.origins.keys() == dict(skeleton.model.named_parameters()).keys()
    for name, parameter in skeleton.model.named_parameters():
        assert parameter.untyped_storage().nbytes() <= 4, name


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_a_run_proves_codes_of_embedding_and_head(tmp_path: Path, tied: bool) -> None:
    sections = tiny_recipe(tmp_path, blocks=1, tied=tied) | {
        "output": str(tmp_path / "run"),
        "quantize": {
            "bits": 4,
            "group_size": 16,
            "method": "gptq",
            "embedding": {"symmetric": False} | ({} if tied else {"bits": 3}),
            "head": {},
        },
        "export": [{"format": "onnx"}],
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(sections), encoding="utf-8")
    record = run(load_recipe(recipe), lambda stage, done, total: None)
    (artefact,) = record.artefacts
    assert artefact.proof.status == "proven"
    assert abs(artefact.predicted.weights / artefact.weight_bytes - 1) < 0.01
    model = onnx.load(tmp_path / "run/artefacts/onnx/model.onnx")
    widths = {
        node.op_type: entry.i
        for node in model.graph.node
        for entry in node.attribute
        if entry.name == "bits"
    }
    assert widths == {"GatherBlockQuantized": 4, "MatMulNBits": 4}
    large = [tensor.name for tensor in model.graph.initializer if tensor.dims[:1] == [8192]]
    owners = {name.rpartition(".")[0] for name in large}
    assert owners == ({NAME} if tied else {NAME, "lm_head"})
    assert all(name.rpartition(".")[2] != "weight" for name in large)
