"""What is in the files: exact matrices, the promised bytes, no trace of where they were made."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from asvd_q.artefact import read_metadata
from asvd_q.errors import ArtefactError
from asvd_q.records import ArtefactMetadata
from asvd_q_exporters.onnx import OnnxOptions
from tests.exporters.onnx.conftest import Export, export
from tests.exporters.onnx.held import matrix_bytes


@pytest.mark.parametrize("name", ["mixed", "tied", "nf4_export", "standard"])
def test_the_unpacker_recovers_every_stored_matrix(
    name: str, request: pytest.FixtureRequest
) -> None:
    made: Export = request.getfixturevalue(name)
    found = dict(made.exporter.read(made.folder))
    assert list(found) == [record.name for record in made.store.records()]
    for layer in made.store.layers():
        matrices = found[layer.record.name]
        assert set(matrices) == set(layer.weights)
        for slot, weight in layer.weights.items():
            assert torch.equal(matrices[slot], weight.dequantize()), (layer.record.name, slot)


@pytest.mark.parametrize("name", ["mixed", "tied", "nf4_export", "standard"])
def test_stored_bytes_are_those_of_the_initializers(
    name: str, request: pytest.FixtureRequest
) -> None:
    made: Export = request.getfixturevalue(name)
    held = matrix_bytes(onnx.load(made.folder / "model.onnx"))
    for record in made.store.records():
        own = {
            name: size
            for name, size in held.items()
            if name == record.name or name.startswith(f"{record.name}.")
        }
        assert made.exporter.stored_bytes(record.as_plan()) == sum(own.values()), own


def test_no_weight_is_transposed_in_the_graph(
    mixed: Export, tied: Export, standard: Export
) -> None:
    for made in (mixed, tied, standard):
        graph = onnx.load(made.folder / "model.onnx").graph
        weights = {tensor.name for tensor in graph.initializer}
        for node in graph.node:
            assert node.op_type != "Transpose" or not weights & set(node.input), node.name


def test_a_tied_head_is_stored_once(tied: Export) -> None:
    model = onnx.load(tied.folder / "model.onnx")
    shapes = [tuple(tensor.dims) for tensor in model.graph.initializer]
    assert shapes.count((128, 64)) == 1
    assert not any(tensor.name.startswith("lm_head") for tensor in model.graph.initializer)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["asvd_q.shared"]) == {
        "lm_head.weight": "model.embed_tokens.weight"
    }


def test_symmetric_codes_carry_no_zero_points(mixed: Export) -> None:
    names = {one.name for one in onnx.load(mixed.folder / "model.onnx").graph.initializer}
    assert "model.layers.0.self_attn.q_proj.codes" in names
    assert "model.layers.0.self_attn.q_proj.zero_points" not in names
    assert "model.layers.0.self_attn.v_proj.ALinear.zero_points" in names


@pytest.mark.parametrize("name", ["mixed", "tied", "nf4_export", "standard"])
def test_the_checker_accepts_the_model(name: str, request: pytest.FixtureRequest) -> None:
    made: Export = request.getfixturevalue(name)
    onnx.checker.check_model(str(made.folder / "model.onnx"))


def test_names_are_those_of_optimum(mixed: Export) -> None:
    graph = onnx.load(mixed.folder / "model.onnx").graph
    layers = [f"{index}.{kind}" for index in range(2) for kind in ("key", "value")]
    assert [one.name for one in graph.input] == [
        *("input_ids", "attention_mask"),
        *(f"past_key_values.{layer}" for layer in layers),
    ]
    assert [one.name for one in graph.output] == [
        "logits",
        *(f"present.{layer}" for layer in layers),
    ]
    past = graph.input[2].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in past] == [
        *("batch_size", 2, "past_sequence_length", 16)
    ]


@pytest.mark.slow
def test_two_exports_have_the_same_bytes(mixed: Export, tmp_path) -> None:
    again = export(mixed.store, tmp_path / "onnx", mixed.exporter.options)
    names = sorted(path.name for path in mixed.folder.iterdir())
    assert names == sorted(path.name for path in again.folder.iterdir())
    for name in names:
        assert (mixed.folder / name).read_bytes() == (again.folder / name).read_bytes(), name


def test_nothing_tells_where_it_was_made(mixed: Export) -> None:
    content = (mixed.folder / "model.onnx").read_bytes()
    for trace in (b"/site-packages", b"stack_trace", b"pkg.torch", b".py", b"ExportedProgram"):
        assert trace not in content
    assert str(mixed.store.source.path).encode() not in content
    assert str(mixed.store.source.path) not in (mixed.folder / "config.json").read_text()


def test_the_model_carries_its_metadata(mixed: Export) -> None:
    model = onnx.load(mixed.folder / "model.onnx")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    inside = ArtefactMetadata.model_validate_json(properties["asvd_q"])
    assert inside == read_metadata(mixed.folder)
    assert inside.options["accuracy_level"] == 0


def test_config_and_generation_config_travel_along(mixed: Export) -> None:
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(mixed.folder).to_dict()
    expected = mixed.store.source.config.to_dict()
    assert found | {"_name_or_path": ""} == expected | {"_name_or_path": ""}
    assert (mixed.folder / "generation_config.json").is_file()


def test_weights_outside_lie_in_one_aligned_file(tied: Export) -> None:
    model = onnx.load(tied.folder / "model.onnx", load_external_data=False)
    assert (tied.folder / "model.onnx_data").is_file()
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if np.prod(tensor.dims) * 4 >= 1024:
            assert place["location"] == "model.onnx_data"
            assert int(place["offset"]) % 64 == 0


def test_float16_halves_scales_floats_and_cache(mixed: Export, tmp_path) -> None:
    made = export(mixed.store, tmp_path / "onnx", OnnxOptions(dtype="float16"))
    model = onnx.load(made.folder / "model.onnx")
    types = {one.name: one.data_type for one in model.graph.initializer}
    assert types["model.layers.0.self_attn.q_proj.scales"] == onnx.TensorProto.FLOAT16
    assert types["model.layers.1.self_attn.v_proj.ALinear.weight"] == onnx.TensorProto.FLOAT16
    for record in made.store.records():
        sizes = [
            numpy_helper.to_array(tensor).nbytes
            for tensor in model.graph.initializer
            if tensor.name.startswith(f"{record.name}.") and not tensor.name.endswith(".bias")
        ]
        assert made.exporter.stored_bytes(record.as_plan()) == sum(sizes)
    for layer in made.store.layers():
        matrices = dict(made.exporter.read(made.folder))[layer.record.name]
        for slot, weight in layer.weights.items():
            quantized = layer.record.quantization[slot] is not None
            expected = weight.dequantize()
            expected = expected if quantized else expected.half().float()
            assert torch.equal(matrices[slot], expected)
    logits, _ = made.exporter.open(made.folder).forward(torch.tensor([[1, 2, 3]]))
    assert torch.isfinite(logits).all()


def test_damage_is_one_line(mixed: Export, tmp_path) -> None:
    with pytest.raises(ArtefactError, match=r"has no model\.onnx"):
        mixed.exporter.open(tmp_path)
    content = (mixed.folder / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: len(content) // 2])
    for attempt in (mixed.exporter.open, lambda folder: list(mixed.exporter.read(folder))):
        with pytest.raises(ArtefactError) as caught:
            attempt(tmp_path)
        assert "\n" not in str(caught.value)
        assert "export it again" in str(caught.value)
