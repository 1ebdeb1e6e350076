"""Rotary embeddings that `GroupQueryAttention` applies itself.

Which of the two ways a model's function takes is found out by running it on numbers, so that no
list of architectures is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "FUNCTION",
    "RotaryTables",
    "RotationKind",
    "rotary_modules",
    "rotation_files",
    "rotation_kind",
]

FUNCTION = "apply_rotary_pos_emb"
"""What transformers' modelling files call the function that rotates queries and keys."""

_DEPENDS_ON_LENGTH = {"dynamic", "longrope"}
"""Kinds of frequencies that change with the number of tokens: they fit no table."""

_ROWS, _WIDTH = 7, 8
_TOLERANCE = 1e-5


def rotation_files(model: nn.Module) -> Iterator[Any]:
    """The modelling files of the model's parts that have such a function."""
    names = sorted({type(module).__module__ for module in model.modules()})
    for name in names:
        if hasattr(sys.modules[name], FUNCTION):
            yield sys.modules[name]


@dataclass(frozen=True)
class RotationKind:
    """How a function rotates.

    Attributes:
        interleaved: neighbours are rotated; otherwise the first half with the second.
        alternating: cosines come as (c₁, c₁, c₂, c₂, …); otherwise as (c₁, c₂, …, c₁, c₂, …).
    """

    interleaved: bool
    alternating: bool


def rotation_kind(function: Callable[..., Any]) -> RotationKind | None:
    """How a function rotates queries and keys, where it does what the operator does."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn((1, heads, _ROWS, _WIDTH), generator=generator) for heads in (2, 1))
    angles = torch.rand((1, _ROWS, _WIDTH // 2), generator=generator)
    for interleaved, alternating in product((False, True), repeat=2):
        cos, sin = (_twice(part, alternating) for part in (angles.cos(), angles.sin()))
        try:
            rotated = function(query, key, cos, sin)
        except (TypeError, RuntimeError, ValueError, IndexError, AttributeError):
            return None
        wanted = [_rotate(part, angles, interleaved) for part in (query, key)]
        if all(
            one.shape == other.shape and torch.allclose(one, other, atol=_TOLERANCE)
            for one, other in zip(rotated, wanted, strict=True)
        ):
            return RotationKind(interleaved, alternating)
    return None


def _twice(angles: Tensor, alternating: bool) -> Tensor:
    if alternating:
        return angles.repeat_interleave(2, dim=-1)
    return torch.cat((angles, angles), dim=-1)


def _rotate(states: Tensor, angles: Tensor, interleaved: bool) -> Tensor:
    """As the operator's specification has it: (x₁, x₂) ↦ (x₁ cos − x₂ sin, x₂ cos + x₁ sin)."""
    cos, sin = angles.cos(), angles.sin()
    half = states.shape[-1] // 2
    if interleaved:
        first, second = states[..., 0::2], states[..., 1::2]
    else:
        first, second = states[..., :half], states[..., half:]
    parts = (first * cos - second * sin, second * cos + first * sin)
    if interleaved:
        return torch.stack(parts, dim=-1).flatten(-2)
    return torch.cat(parts, dim=-1)


def rotary_modules(model: nn.Module) -> list[nn.Module]:
    """Modules that make cosines and sines from positions."""
    return [
        module for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding")
    ]


class RotaryTables:
    """Remembers where cosines came from, and makes tables in their stead.

    Args:
        positions: how many rows a table has.
    """

    def __init__(self, positions: int) -> None:
        self._positions = positions
        self._made: dict[int, tuple[Tensor, nn.Module, tuple[Any, ...], dict[str, Any]]] = {}
        self._tables: dict[tuple[int, RotationKind], tuple[Tensor, Tensor]] = {}

    def note(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """A forward hook for rotary modules."""
        if isinstance(output, tuple) and len(output) == 2:
            self._made[id(output[0])] = (output[0], module, args, kwargs)

    def table(self, cos: Tensor, kind: RotationKind) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines (positions, width / 2) of every position.

        Args:
            cos: as a module noted before has made it.

        Returns:
            None where they depend on more than the position, or do not come from a module.
        """
        if id(cos) not in self._made:
            return None
        _, module, args, kwargs = self._made[id(cos)]
        if _kind(module) in _DEPENDS_ON_LENGTH:
            return None
        key = (id(cos), kind)
        if key not in self._tables:
            made = self._run(module, args, kwargs)
            step = slice(None, None, 2) if kind.alternating else slice(0, cos.shape[-1] // 2)
            self._tables[key] = (made[0][0, :, step], made[1][0, :, step])
        return self._tables[key]

    def _run(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        positions = torch.arange(self._positions)[None]
        kwargs = {k: positions if k == "position_ids" else v for k, v in kwargs.items()}
        if "position_ids" not in kwargs:
            args = (args[0], positions, *args[2:])
        made: tuple[Tensor, Tensor] = module.forward(*args, **kwargs)
        return made


def _kind(module: nn.Module) -> str:
    kind = getattr(module, "rope_type", "default")
    return kind if isinstance(kind, str) else "longrope"
