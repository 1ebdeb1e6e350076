"""The whole artefact: graph, weights, configuration, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asvd_q.errors import ExportError
from asvd_q.files import write_text
from asvd_q.quantization import TORCH_TYPES
from asvd_q.store import Store
from asvd_q_exporters.onnx.genai import GENAI_FILE, genai_text, graph_facts
from asvd_q_exporters.onnx.graph import Traced, quiet, trace
from asvd_q_exporters.onnx.keys import (
    BUFFERS_KEY,
    MERGED_KEY,
    METADATA_KEY,
    POSITIONS_KEY,
    SHARED_KEY,
)
from asvd_q_exporters.onnx.operators import operators_of
from asvd_q_exporters.onnx.save import save
from asvd_q_exporters.onnx.sharing import same_factors
from asvd_q_exporters.onnx.skeleton import Skeleton, build_skeleton
from asvd_q_exporters.onnx.tensors import TensorReader

if TYPE_CHECKING:
    from asvd_q.models import SourceModel
    from asvd_q.records import ArtefactMetadata
    from asvd_q_exporters.onnx.exporter import OnnxOptions

__all__ = [
    "CONFIG_FILE",
    "build_model",
    "config_text",
    "properties",
    "write_artefact",
]

CONFIG_FILE = "config.json"


def write_artefact(store: Store, folder: Path, options: OnnxOptions) -> None:
    """Write every file of the artefact into an existing folder."""
    traced = build_model(store, options)
    save(traced.model, folder, options.external_data)
    write_text(folder / CONFIG_FILE, config_text(store.source))
    facts = graph_facts(traced.model)
    genai = genai_text(
        store.source,
        facts,
        share_buffer=traced.attention.fused,
        session_level=options.session_level,
    )
    if genai is not None:
        write_text(folder / GENAI_FILE, genai)
    for file in store.source.companion_files():
        shutil.copyfile(file, folder / file.name)


def build_model(store: Store, options: OnnxOptions) -> Traced:
    """The graph with lazy weights: each is read from the store when its bytes are asked for."""
    dtype = TORCH_TYPES[options.dtype]
    with quiet():
        skeleton = build_skeleton(store.finished_plan, store.source, same_factors(store), options)
        traced = trace(
            skeleton.model,
            dtype,
            options.opset,
            skeleton.shared,
            fused=options.fused,
            merge_whole=options.merge_products,
        )
    _fill(traced, skeleton, TensorReader(store, dtype, operators_of(options.operators)))
    metadata = store.metadata("onnx", options.model_dump())
    traced.model.metadata_props.update(properties(metadata, skeleton.shared, traced))
    return traced


def config_text(source: SourceModel) -> str:
    """Content of the artefact's configuration."""
    return str(source.config.to_json_string(use_diff=True))


def properties(
    metadata: ArtefactMetadata, shared: Mapping[str, str], traced: Traced | None = None
) -> dict[str, str]:
    """What the model file says of itself; without a graph, all but what only that tells."""
    found = {METADATA_KEY: metadata.model_dump_json()}
    if shared:
        found[SHARED_KEY] = json.dumps(shared, sort_keys=True)
    if traced is not None and traced.merged:
        members = {merged.name: merged.members for merged in traced.merged}
        found[MERGED_KEY] = json.dumps(members, sort_keys=True)
    if traced is not None and traced.attention.fused:
        found[BUFFERS_KEY] = "shared"
    if traced is not None and traced.longest is not None:
        found[POSITIONS_KEY] = str(traced.longest)
    return found


def _fill(traced: Traced, skeleton: Skeleton, reader: TensorReader) -> None:
    import onnx_ir

    held = {name: one for merged in traced.merged for name, one in merged.tensors.items()}

    def evaluate(
        name: str, parts: Sequence[str], axis: int, value: onnx_ir.Value
    ) -> onnx_ir.TensorProtocol:
        tensors = [reader.read(part, skeleton.origins[part]).numpy() for part in parts]
        values = tensors[0] if len(tensors) == 1 else np.concatenate(tensors, axis)
        if skeleton.origins[parts[0]].narrow_type is None:
            return onnx_ir.Tensor(values, name=name)
        return onnx_ir.PackedTensor(values, value.dtype, shape=value.shape, name=name)

    for name, value in traced.model.graph.initializers.items():
        if value.const_value is not None:
            continue
        parts, axis = held.get(name, ((name,), 0))
        if not skeleton.origins.keys() >= set(parts):
            raise ExportError(f"{name}: nothing in the store or the source stands behind it")
        narrow = skeleton.origins[parts[0]].narrow_type
        if narrow is not None:
            value.dtype = onnx_ir.DataType[narrow.upper()]
        value.const_value = onnx_ir.LazyTensor(
            partial(evaluate, name, parts, axis, value), value.dtype, value.shape, name=name
        )
