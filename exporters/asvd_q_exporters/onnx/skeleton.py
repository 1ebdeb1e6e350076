"""The source's architecture with stored layers in place, and no weight in memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from asvd_q.errors import ExportError
from asvd_q.models import SourceModel
from asvd_q.models.buffers import load_buffers
from asvd_q.plan import LayerPlan, Plan, Slot
from asvd_q.quantization import TORCH_TYPES
from asvd_q_exporters.onnx.fused import fuse_norms
from asvd_q_exporters.onnx.gather.place import place_embedding
from asvd_q_exporters.onnx.layers import FloatLinear, TiedHead, stand_in
from asvd_q_exporters.onnx.nodes import NarrowType
from asvd_q_exporters.onnx.operators import Operator, operators_of
from asvd_q_exporters.onnx.placeholders import placeholder

if TYPE_CHECKING:
    from asvd_q_exporters.onnx.exporter import OnnxOptions

__all__ = ["Origin", "Skeleton", "build_skeleton"]

_FACTORS: dict[Slot, str] = {"B": "BLinear", "A": "ALinear"}


@dataclass(frozen=True)
class Origin:
    """Where the values of one parameter come from.

    Attributes:
        part: of a quantized matrix, as its operator names it ("codes"); "tensor" otherwise.
        layer: the stored layer, with `slot`; None for a tensor of the source model.
        tensor: name in the source model, when `layer` is None.
        transposed: whether the file holds the transpose of what is stored.
        narrow_type: the initializer's type, where torch has none for it.
    """

    part: str = "tensor"
    layer: LayerPlan | None = None
    slot: Slot | None = None
    tensor: str = ""
    transposed: bool = False
    narrow_type: NarrowType | None = None


@dataclass(frozen=True)
class Skeleton:
    """A model to trace.

    Attributes:
        model: the Hugging Face model, all parameters placeholders, buffers those of the files.
        origins: of every parameter, by its name in the model.
        shared: parameters that are another one's matrix, or a part of it, by name: a tied head,
            or the B of corrections that have it in common.
    """

    model: nn.Module
    origins: dict[str, Origin]
    shared: dict[str, str]


def build_skeleton(
    plan: Plan,
    source: SourceModel,
    same_factors: Mapping[str, str],
    options: OnnxOptions,
) -> Skeleton:
    """Build the architecture on the meta device and put the stand-ins in.

    Args:
        same_factors: corrected layer → the one whose B it shares.

    Raises:
        ExportError: a stored layer is no linear layer of this architecture.
    """
    dtype, level = TORCH_TYPES[options.dtype], options.accuracy_level
    operators = operators_of(options.operators)
    model = _empty_model(source, dtype)
    load_buffers(model, source)
    stored = _stored_names(model, source)
    for owner in model.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            setattr(owner, name, placeholder(tuple(parameter.shape), parameter.dtype))
    shared = _tie_head(model, plan, source)
    origins: dict[str, Origin] = {}
    for layer in plan:
        if layer.role == "embedding":
            if layer.changed:
                placed = place_embedding(model, layer, dtype, level)
                shared |= placed.shared
                for part in placed.parts:
                    origins[f"{layer.name}.{part}"] = Origin(part, layer, "weight")
        elif f"{layer.name}.weight" not in shared:
            origins |= _place_layer(model, layer, dtype, level, operators)
    for name, first in same_factors.items():
        for parameter in _share_factor(model, name, first):
            shared[f"{name}.{parameter}"] = f"{first}.{parameter}"
            del origins[f"{name}.{parameter}"]
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            shape = (module.out_features, module.in_features)
            replacement = FloatLinear(shape, module.bias is not None, dtype)
            model.set_submodule(name, replacement)
            origins[f"{name}.weight"] = Origin(tensor=stored[f"{name}.weight"], transposed=True)
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name not in shared and name not in origins:
            origins[name] = Origin(tensor=stored[name])
    if options.fused:
        fuse_norms(model)
    return Skeleton(model.eval(), origins, shared)


def _empty_model(source: SourceModel, dtype: torch.dtype) -> Any:
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    # Eager attention masks with a finite number: rows of padding stay finite, where a softmax
    # over minus infinity would put NaN into the cache.
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(source.config),
            attn_implementation="eager",
            dtype=dtype,
            trust_remote_code=source.trust_remote_code,
        )


def _stored_names(model: Any, source: SourceModel) -> dict[str, str]:
    """Every parameter → a name of it that the source's files have, tied ones having several."""
    model.tie_weights()  # registering a parameter on the meta device had torn them apart
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {
        name: next((known for known in group if source.resolve(known) is not None), name)
        for group in names.values()
        for name in group
    }


def _tie_head(model: Any, plan: Plan, source: SourceModel) -> dict[str, str]:
    """Let the head read the embedding, where the model ties them and the plan changes neither."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    names = {module: name for name, module in model.named_modules()}
    if head not in names or embedding not in names:
        return {}
    head_name, embedding_name = names[head], names[embedding]
    if any(layer.name in (head_name, embedding_name) and layer.changed for layer in plan):
        return {}
    tied = model.config.get_text_config().tie_word_embeddings
    if not tied or not _same(source, f"{head_name}.weight", f"{embedding_name}.weight"):
        return {}
    model.set_submodule(head_name, TiedHead(embedding.weight, getattr(head, "bias", None)))
    return {f"{head_name}.weight": f"{embedding_name}.weight"}


def _same(source: SourceModel, one: str, other: str) -> bool:
    """Some checkpoints hold a head of their own although the configuration ties it."""
    return source.resolve(one) is None or torch.equal(source.tensor(one), source.tensor(other))


def _place_layer(
    model: nn.Module,
    layer: LayerPlan,
    dtype: torch.dtype,
    accuracy_level: int,
    operators: Mapping[str, Operator],
) -> dict[str, Origin]:
    from transformers.pytorch_utils import Conv1D

    try:
        module = model.get_submodule(layer.name)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear | Conv1D):
        raise ExportError(
            f"{layer.name}: the onnx format holds linear layers, and this is not one of the "
            f"model's ({type(module).__name__}); leave it out of the recipe's layers"
        )
    replacement = stand_in(layer, module.bias is not None, dtype, accuracy_level, operators)
    model.set_submodule(layer.name, replacement)
    origins: dict[str, Origin] = {}
    for name, _ in replacement.named_parameters():
        matrix, _, part = name.rpartition(".")
        if part == "bias":
            origin = Origin(tensor=f"{layer.name}.bias")
        else:
            slot: Slot = next((s for s, factor in _FACTORS.items() if factor == matrix), "weight")
            spec = layer.quantization[slot]
            if spec is None:
                origin = Origin("tensor", layer, slot, transposed=True)
            else:
                narrow = operators[spec.method].narrow_type(part, spec)
                origin = Origin(part, layer, slot, narrow_type=narrow)
        origins[f"{layer.name}.{name}"] = origin
    return origins


def _share_factor(model: nn.Module, name: str, first: str) -> list[str]:
    """Let a correction use the B of another; returns its parameters, as the layers name them.

    Where both read the same input, the tracer's optimizer sees one product and keeps one.
    """
    module = model.get_submodule(f"{first}.BLinear")
    model.set_submodule(f"{name}.BLinear", module)
    return [f"BLinear.{part}" for part, _ in module.named_parameters()]
