"""The whole artefact: graph, weights, configuration, tokenizer."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from asvd_q.errors import ExportError
from asvd_q.files import write_text
from asvd_q.quantization import TORCH_TYPES
from asvd_q.store import Store
from asvd_q_exporters.onnx.genai import GENAI_FILE, genai_text, graph_facts
from asvd_q_exporters.onnx.graph import quiet, trace
from asvd_q_exporters.onnx.save import save
from asvd_q_exporters.onnx.sharing import same_factors
from asvd_q_exporters.onnx.skeleton import Origin, Skeleton, build_skeleton
from asvd_q_exporters.onnx.tensors import TensorReader

if TYPE_CHECKING:
    import onnx_ir

    from asvd_q.models import SourceModel
    from asvd_q.records import ArtefactMetadata
    from asvd_q_exporters.onnx.exporter import OnnxOptions

__all__ = [
    "CONFIG_FILE",
    "METADATA_KEY",
    "SHARED_KEY",
    "build_model",
    "config_text",
    "properties",
    "write_artefact",
]

CONFIG_FILE = "config.json"
METADATA_KEY = "asvd_q"
SHARED_KEY = "asvd_q.shared"
"""Metadata property with the parameters that the file holds under another's name, as JSON."""


def write_artefact(store: Store, folder: Path, options: OnnxOptions) -> None:
    """Write every file of the artefact into an existing folder."""
    model = build_model(store, options)
    save(model, folder, options.external_data)
    write_text(folder / CONFIG_FILE, config_text(store.source))
    genai = genai_text(store.source, graph_facts(model), share_buffer=False)
    if genai is not None:
        write_text(folder / GENAI_FILE, genai)
    for file in store.source.companion_files():
        shutil.copyfile(file, folder / file.name)


def build_model(store: Store, options: OnnxOptions) -> onnx_ir.Model:
    """The model with lazy weights: each is read from the store when its bytes are asked for."""
    dtype = TORCH_TYPES[options.dtype]
    with quiet():
        skeleton = build_skeleton(
            store.finished_plan,
            store.source,
            same_factors(store),
            dtype,
            options.accuracy_level,
        )
        model = trace(skeleton.model, dtype, options.opset, skeleton.shared)
    _fill(model, skeleton, TensorReader(store, dtype))
    metadata = store.metadata("onnx", options.model_dump())
    model.metadata_props.update(properties(metadata, skeleton))
    return model


def config_text(source: SourceModel) -> str:
    """Content of the artefact's configuration."""
    return str(source.config.to_json_string(use_diff=True))


def properties(metadata: ArtefactMetadata, skeleton: Skeleton) -> dict[str, str]:
    """What the model file says of itself."""
    found = {METADATA_KEY: metadata.model_dump_json()}
    if skeleton.shared:
        found[SHARED_KEY] = json.dumps(skeleton.shared, sort_keys=True)
    return found


def _fill(model: onnx_ir.Model, skeleton: Skeleton, reader: TensorReader) -> None:
    import onnx_ir

    def evaluate(name: str, origin: Origin) -> onnx_ir.Tensor:
        return onnx_ir.Tensor(reader.read(name, origin).numpy(), name=name)

    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            continue
        origin = skeleton.origins.get(name)
        if origin is None:
            raise ExportError(f"{name}: nothing in the store or the source stands behind it")
        value.const_value = onnx_ir.LazyTensor(
            partial(evaluate, name, origin), value.dtype, value.shape, name=name
        )
