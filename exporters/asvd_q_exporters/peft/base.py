"""What the base checkpoint holds of a layer."""

from __future__ import annotations

from typing import TypeVar

from asvd_q.plan import LayerPlan
from asvd_q.records import LayerRecord

__all__ = ["codes_alone"]

_Layer = TypeVar("_Layer", LayerPlan, LayerRecord)


def codes_alone(layer: _Layer) -> _Layer:
    """A corrected layer as one whose weight is its codes; any other as it is."""
    if layer.form != "correction":
        return layer
    weight = layer.quantization["weight"]
    changes = {"form": "dense", "rank": None, "quantization": {"weight": weight}}
    return layer.model_copy(update=changes)
