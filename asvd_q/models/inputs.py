"""Which layers read the same input, found from a model's structure alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from asvd_q.models.skeleton import Skeleton

__all__ = ["shared_inputs"]


def shared_inputs(skeleton: Skeleton) -> tuple[tuple[str, ...], ...]:
    """Layers of the blocks that are called with the very same tensor.

    The model runs once on two tokens, all of it on the meta device, which computes shapes alone.

    Returns:
        Groups of two or more names, in the order in which they are called. None of a model whose
        code looks at values, as that of experts does.
    """
    model = copy.deepcopy(skeleton.model).to("meta")
    seen: dict[int, tuple[Tensor, list[str]]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            # The tensor is kept, so that its id is not given to another one meanwhile.
            seen.setdefault(id(args[0]), (args[0], []))[1].append(name)

        return hook

    for weight in skeleton.weights:
        if weight.block is not None:
            model.get_submodule(weight.module).register_forward_pre_hook(note(weight.name))
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros((1, 2), dtype=torch.int64, device="meta"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return ()
    return tuple(tuple(names) for _, names in seen.values() if len(names) > 1)
