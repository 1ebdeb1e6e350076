"""Models that transformers cannot load as they are when some of their layers have codes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from asvd_q.models.skeleton import build_skeleton

if TYPE_CHECKING:
    from asvd_q.models import SourceModel

__all__ = ["fails_without_weights"]


def fails_without_weights(source: SourceModel, quantized: Iterable[str]) -> bool:
    """Whether the model initialises the weight of a quantized layer through the one around it.

    Some architectures do (GPT-2 for `c_proj`). transformers calls that for classes of its own
    although every tensor was loaded, and a layer with codes has no weight to initialise. It
    leaves other classes alone: one derived from the model's own loads.

    Args:
        quantized: names of modules.
    """
    model = build_skeleton(source).model
    if not isinstance(model, PreTrainedModel):
        return False
    modules = dict(model.named_modules())
    around = set()
    for name in quantized:
        if name in modules:  # a factor is not
            parent = name.rpartition(".")[0]
            setattr(modules[parent], name.rpartition(".")[2], nn.Module())
            around.add(parent)
    try:
        for parent in around:
            model._init_weights(modules[parent])
    except AttributeError:
        return True
    return False
