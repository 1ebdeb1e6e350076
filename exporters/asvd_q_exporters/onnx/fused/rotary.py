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
    "fits_operator",
    "frequency_kinds",
    "rotary_modules",
    "rotation_files",
    "rotation_kind",
]

FUNCTION = "apply_rotary_pos_emb"
"""What transformers' modelling files call the function that rotates queries and keys."""

_DEPENDS_ON_LENGTH = {"dynamic", "longrope"}
"""Kinds of frequencies that change with the number of tokens: they fit no table."""

_ROWS, _WIDTH = 7, 8
_TABLE_MULTIPLE = 8
"""Of the width of a table, that the runtime's kernel wants; heads are twice as wide or more."""

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


def rotation_kind(function: Callable[..., Any], *, part: bool = False) -> RotationKind | None:
    """How a function rotates queries and keys, where it does what the operator does.

    Args:
        part: it is given cosines and sines for the first numbers of a head; the others stay.
    """
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn((1, heads, _ROWS, _WIDTH), generator=generator) for heads in (2, 1))
    rotated = _WIDTH // 2 if part else _WIDTH
    angles = torch.rand((1, _ROWS, rotated // 2), generator=generator)
    for interleaved, alternating in product((False, True), repeat=2):
        cos, sin = (_twice(values, alternating) for values in (angles.cos(), angles.sin()))
        wanted = [_rotate(states, angles, interleaved) for states in (query, key)]
        try:
            found = function(query, key, cos, sin)
            same = all(
                one.shape == other.shape and torch.allclose(one, other, atol=_TOLERANCE)
                for one, other in zip(found, wanted, strict=True)
            )
        except (TypeError, RuntimeError, ValueError, IndexError, AttributeError):
            return None
        if same:
            return RotationKind(interleaved, alternating)
    return None


def _twice(angles: Tensor, alternating: bool) -> Tensor:
    if alternating:
        return angles.repeat_interleave(2, dim=-1)
    return torch.cat((angles, angles), dim=-1)


def _rotate(states: Tensor, angles: Tensor, interleaved: bool) -> Tensor:
    """As the operator's specification has it: (x₁, x₂) ↦ (x₁ cos − x₂ sin, x₂ cos + x₁ sin)."""
    cos, sin = angles.cos(), angles.sin()
    half = angles.shape[-1]
    states, kept = states[..., : 2 * half], states[..., 2 * half :]
    if interleaved:
        first, second = states[..., 0::2], states[..., 1::2]
    else:
        first, second = states[..., :half], states[..., half:]
    parts = (first * cos - second * sin, second * cos + first * sin)
    if interleaved:
        return torch.cat((torch.stack(parts, dim=-1).flatten(-2), kept), dim=-1)
    return torch.cat((*parts, kept), dim=-1)


def rotary_modules(model: nn.Module) -> list[nn.Module] | None:
    """Modules that make cosines and sines from positions; None where those fit no table."""
    kinds = frequency_kinds(model)
    tabled = all(isinstance(kind, str) and kind not in _DEPENDS_ON_LENGTH for kind in kinds)
    return _rotary_embeddings(model) if tabled else None


def frequency_kinds(model: nn.Module) -> list[object]:
    """What transformers calls `rope_type`, of every module that makes cosines and sines."""
    return [kind for module in _rotary_embeddings(model) for kind in _kinds(module)]


def _rotary_embeddings(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if type(part).__name__.endswith("RotaryEmbedding")]


def _kinds(module: nn.Module) -> list[object]:
    """Of a module's frequencies: some have one by type of layer."""
    kind = getattr(module, "rope_type", "default")
    return list(kind.values()) if isinstance(kind, dict) else [kind]


def fits_operator(width: int, rotated: int) -> bool:
    """Whether the runtime rotates so many numbers of a head that wide."""
    return rotated % (2 * _TABLE_MULTIPLE) == 0 and width % (2 * _TABLE_MULTIPLE) == 0


class RotaryTables:
    """Lets rotary modules make cosines and sines of every position, whatever they are asked for.

    Args:
        positions: how many there are.
    """

    def __init__(self, positions: int) -> None:
        self._positions = positions
        self._made: dict[object, tuple[Tensor, Tensor]] = {}

    def replacement(self, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
        """For the module's `forward`; it puts out (1, positions, width), twice."""
        forward = module.forward

        def make(
            x: Tensor, position_ids: Tensor | None = None, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            key = (id(module), args, tuple(sorted(kwargs.items())))
            if key not in self._made:
                positions = torch.arange(self._positions)[None]
                self._made[key] = forward(x, positions, *args, **kwargs)
            return self._made[key]

        return make

    def clear(self) -> None:
        """Forget what was made: another pass begins."""
        self._made.clear()

    def table(self, cos: Tensor, sin: Tensor, kind: RotationKind) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines (positions, width / 2) as the operator reads them.

        Returns:
            None where these are not what a module has just made.
        """
        if not any(cos is made[0] and sin is made[1] for made in self._made.values()):
            return None
        step = slice(None, None, 2) if kind.alternating else slice(0, cos.shape[-1] // 2)
        return cos[0, :, step], sin[0, :, step]
