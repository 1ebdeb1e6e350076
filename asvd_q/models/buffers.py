"""Buffers that checkpoints hold, such as Gemma 4's scale of each layer: a model built from its
configuration alone has what its constructor puts there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from asvd_q.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from asvd_q.models.source import SourceModel

__all__ = ["load_buffers", "persistent_buffers"]


def persistent_buffers(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Those that are in a state dictionary: dotted name, the module that has it, its name there."""
    for path, owner in module.named_modules():
        for leaf, _ in owner.named_buffers(recurse=False):
            if leaf not in owner._non_persistent_buffers_set:
                yield f"{path}.{leaf}" if path else leaf, owner, leaf


def load_buffers(model: nn.Module, source: SourceModel) -> None:
    """Give a model the source's buffers, in the types that its own have; others stay.

    Raises:
        ModelError: one has another shape than the model's.
    """
    for name, owner, leaf in persistent_buffers(model):
        if source.resolve(name) is None:
            continue
        found, own = source.tensor(name), owner.get_buffer(leaf)
        if found.shape != own.shape:
            raise ModelError(
                f"{source.path}: {name} has shape {tuple(found.shape)} where its configuration "
                f"says {tuple(own.shape)}"
            )
        owner._buffers[leaf] = found.to(own.dtype)
