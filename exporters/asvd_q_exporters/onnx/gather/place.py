"""An embedding of codes in a model, and the head that reads the same codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from asvd_q.errors import ExportError
from asvd_q.plan import LayerPlan
from asvd_q_exporters.onnx.gather.embedding import NBitsEmbedding, embedding_factor
from asvd_q_exporters.onnx.nbits.layout import nbits_layout
from asvd_q_exporters.onnx.nbits.linear import NBitsLinear

__all__ = ["PlacedEmbedding", "place_embedding"]


@dataclass(frozen=True)
class PlacedEmbedding:
    """What an embedding of codes has brought into a model.

    Attributes:
        parts: names of its parameters within the embedding ("codes").
        shared: parameters of a tied head → those of the embedding that they are, by full name.
    """

    parts: tuple[str, ...]
    shared: dict[str, str]


def place_embedding(
    model: nn.Module, layer: LayerPlan, dtype: torch.dtype, accuracy_level: int
) -> PlacedEmbedding:
    """Put the stand-ins in.

    Args:
        layer: an embedding with codes.
        dtype: of scales and activations.
        accuracy_level: of a tied head.

    Raises:
        ExportError: the model's modules of these names are no embedding and no head.
    """
    spec = layer.quantization["weight"]
    assert spec is not None
    layout = nbits_layout(layer.shape, spec, dtype.itemsize)
    factor = embedding_factor(layer.name, _module(model, layer.name), dtype)
    embedding = NBitsEmbedding(layout, dtype, tied=layer.tied is not None, factor=factor)
    model.set_submodule(layer.name, embedding)
    parts = tuple(name for name, _ in embedding.named_parameters())
    if layer.tied is None:
        return PlacedEmbedding(parts, {})
    source = _module(model, layer.tied)
    if not isinstance(source, nn.Linear):
        raise ExportError(
            f"{layer.tied}: the onnx format holds tied heads that are linear layers, and this is "
            f"not one ({type(source).__name__}); leave the embedding in floating point"
        )
    head = NBitsLinear(layout, source.bias is not None, dtype, accuracy_level)
    for part in parts:
        setattr(head, part, getattr(embedding, part))
    model.set_submodule(layer.tied, head)
    return PlacedEmbedding(
        parts, {f"{layer.tied}.{part}": f"{layer.name}.{part}" for part in parts}
    )


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ExportError(f"{name}: the model that is exported has no such module") from error
