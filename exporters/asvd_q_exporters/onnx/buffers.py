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

    def row(self, index: int, length: int, room: int) -> Buffers:
        """A copy of one sequence, as `holding` copies all."""
        rows = [
            onnxruntime.OrtValue.ortvalue_from_numpy(value.numpy()[index : index + 1].copy())
            for value in self.values
        ]
        return Buffers.holding(rows, length, room)

    @classmethod
    def of_rows(cls, rows: Sequence[Buffers]) -> Buffers:
        """Sequences of the same length and capacity as one batch."""
        values = [
            onnxruntime.OrtValue.ortvalue_from_numpy(np.concatenate([one.numpy() for one in same]))
            for same in zip(*(row.values for row in rows), strict=True)
        ]
        return cls(values, rows[0].capacity, rows[0].written)


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

    def rows(self, tokens: int) -> list[SharedPast]:
        """Every sequence by itself, with room for so many tokens."""
        batch = self.buffers.values[0].shape()[0]
        return [
            SharedPast(self.buffers.row(index, self.length, tokens), self.length)
            for index in range(batch)
        ]

    @staticmethod
    def of_rows(rows: Sequence[SharedPast]) -> SharedPast:
        """Sequences of the same length as one batch."""
        return SharedPast(Buffers.of_rows([row.buffers for row in rows]), rows[0].length)

    def extended(self, tokens: int) -> SharedPast:
        """After so many tokens were written behind it."""
        self.buffers.written = self.length + tokens
        return SharedPast(self.buffers, self.buffers.written)
