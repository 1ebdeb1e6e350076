"""Activations of a whole plain model, caught by hooks of torch alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def captured_inputs(
    model: nn.Module, layers: Iterable[str], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Inputs (tokens, in) of each layer over all batches, float64, in order."""
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str, inputs: Tensor) -> None:
        found[name].append(inputs.detach().reshape(-1, inputs.shape[-1]).double())

    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: keep(name, args[0])
        )
        for name in found
    ]
    with torch.no_grad():
        for batch in batches:
            model(batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}
