"""Keys and values in memory that the runtime writes to in place.

Without it every token copies all that came before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime

__all__ = ["Buffers", "SharedPast"]

_LEAST_ROOM = 64
"""Tokens that a buffer has room for beyond those it begins with, at least."""


@dataclass
class Buffers:
    """Keys and values (batch, heads, capacity, width) by layer.

    Attributes:
        written: tokens that hold something.
    """

    values: list[onnxruntime.OrtValue]
    capacity: int
    written: int

    @classmethod
    def holding(cls, values: Sequence[onnxruntime.OrtValue], length: int, room: int) -> Buffers:
        """The first `length` tokens of others, with room for more."""
        capacity = length + max(room, length, _LEAST_ROOM)
        copies = []
        for value in values:
            batch, heads, _, width = value.shape()
            held = value.numpy()
            array = np.zeros((batch, heads, capacity, width), held.dtype)
            array[:, :, :length] = held[:, :, :length]
            copies.append(onnxruntime.OrtValue.ortvalue_from_numpy(array))
        return cls(copies, capacity, length)


@dataclass(frozen=True)
class SharedPast:
    """The first tokens of buffers, which later tokens are written behind."""

    buffers: Buffers
    length: int

    def with_room(self, tokens: int) -> SharedPast:
        """A past that so many tokens can be written behind without harm to another one."""
        buffers = self.buffers
        if buffers.written == self.length and buffers.capacity >= self.length + tokens:
            return self
        return SharedPast(Buffers.holding(buffers.values, self.length, tokens), self.length)

    def extended(self, tokens: int) -> SharedPast:
        """After so many tokens were written behind it."""
        self.buffers.written = self.length + tokens
        return SharedPast(self.buffers, self.buffers.written)
