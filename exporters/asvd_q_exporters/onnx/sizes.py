"""How many bytes an artefact will take. Weights are exact in sum, though small ones that the graph
merges may lie in the other of the two files; the graph's nodes are estimated.

An exact count of nodes takes a trace, which lasts longer than everything else a plan needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asvd_q.artefact import ArtefactBytes
from asvd_q.plan import FLOAT_BYTES, FloatType, LayerPlan, Plan
from asvd_q.quantization import TORCH_TYPES
from asvd_q.sizes import expected_metadata
from asvd_q_exporters.onnx.decoders import AttentionForm, attention_form, example_past
from asvd_q_exporters.onnx.genai import GENAI_FILE, expected_facts, genai_text
from asvd_q_exporters.onnx.graph import quiet
from asvd_q_exporters.onnx.nbits.layout import nbits_layout
from asvd_q_exporters.onnx.nodes import CONTRIB, NarrowType, float_node
from asvd_q_exporters.onnx.operators import operators_of
from asvd_q_exporters.onnx.save import DATA_FILE, MODEL_FILE, property_bytes, saved_bytes
from asvd_q_exporters.onnx.skeleton import build_skeleton
from asvd_q_exporters.onnx.write import CONFIG_FILE, config_text, properties

if TYPE_CHECKING:
    import onnx_ir
    from torch import nn

    from asvd_q.models import SourceModel
    from asvd_q_exporters.onnx.exporter import OnnxOptions

__all__ = ["artefact_bytes"]

_GRAPH = 5700
_BLOCK = {True: 1550, False: 2700}
"""Bytes of what a graph has once, and in every block by whether its attention is one operator,
without its matrices and names of weights.

Set by what was left of whole files, 0.05 % of them on a model of 4 MiB: how many nodes a block has
depends on what was merged in it, and on its norms and rotation.
"""

_NODE = 33
"""A node without attributes, with the names of what it computes from and makes."""

_ATTRIBUTE = 10
"""An attribute of a node, without its name."""


def artefact_bytes(plan: Plan, source: SourceModel, options: OnnxOptions) -> ArtefactBytes:
    """See `asvd_q.artefact.SizedExporter`."""
    dtype = TORCH_TYPES[options.dtype]
    with quiet():
        skeleton = build_skeleton(plan, source, plan.same_factors(), options)
    parameters = dict(skeleton.model.named_parameters())
    tensors = [
        (name, _without_values(name, parameter, skeleton.origins[name].narrow_type))
        for name, parameter in parameters.items()
    ]
    inside, outside = saved_bytes(tensors, options.external_data)
    metadata = expected_metadata(plan, source, "onnx", options.model_dump(mode="json"))
    model = inside + sum(
        property_bytes(key, value) for key, value in properties(metadata, skeleton.shared).items()
    )
    past = example_past(skeleton.model, dtype)
    form = attention_form(skeleton.model, past) if options.fused else AttentionForm()
    model += _GRAPH + _BLOCK[form.fused] * int(source.config.get_text_config().num_hidden_layers)
    model += sum(len(name) + 2 for name in parameters)
    model += sum(_node_bytes(layer, options) for layer in plan)
    weights = {MODEL_FILE: model} | ({DATA_FILE: outside} if outside else {})
    others = {file.name: file.stat().st_size for file in source.companion_files()}
    others[CONFIG_FILE] = len(config_text(source).encode())
    genai = genai_text(
        source,
        expected_facts(source, past, form),
        share_buffer=form.fused,
        session_level=options.session_level,
    )
    if genai is not None:
        others[GENAI_FILE] = len(genai.encode())
    return ArtefactBytes(weights, others)


def _without_values(
    name: str, parameter: nn.Parameter, narrow: NarrowType | None
) -> onnx_ir.TensorProtocol:
    """An initializer with the type and shape that the file will have."""
    import onnx_ir

    found = onnx_ir.tensor_adapters.TorchTensor(parameter, name=name)
    if narrow is None:
        return found
    dtype = onnx_ir.DataType[narrow.upper()]
    return onnx_ir.LazyTensor(lambda: found, dtype, found.shape, name=name)


def _node_bytes(layer: LayerPlan, options: OnnxOptions) -> int:
    """Of a layer's nodes, without the names of its weights."""
    dtype, operators = options.dtype, operators_of(options.operators)
    total = 0
    if layer.role == "embedding":
        total = _lookup_bytes(layer, dtype) if layer.changed else 0
        if layer.tied is None or not layer.changed:
            return total  # a node without codes is one of those that every graph has
    if layer.form == "correction":
        total += _NODE  # the sum of both products
    for slot, shape in layer.slot_shapes().items():
        spec = layer.quantization[slot]
        node = (
            float_node(shape, dtype)
            if spec is None
            else operators[spec.method].node(shape, spec, dtype, options.accuracy_level)
        )
        total += _NODE * (2 if node.dequantizes else 1)
        total += sum(len(name) + _ATTRIBUTE for name, _ in node.attributes)
        total += len(CONTRIB) + 2 if node.domain else 0
        total += 2 * (_NODE + _ATTRIBUTE) if node.activations != dtype else 0  # two casts
    return total


def _lookup_bytes(layer: LayerPlan, dtype: FloatType) -> int:
    """Of the node that looks up rows, and of what gives a tied one's codes their shape."""
    spec = layer.quantization["weight"]
    assert spec is not None
    attributes = nbits_layout(layer.shape, spec, FLOAT_BYTES[dtype]).gather_attributes
    total = _NODE + len(CONTRIB) + 2 + sum(len(name) + _ATTRIBUTE for name in attributes)
    return total + (2 * _NODE + _ATTRIBUTE if layer.tied is not None else 0)
