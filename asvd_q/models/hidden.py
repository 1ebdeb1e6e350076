"""Hidden states of the calibration windows, one tensor per batch, in memory or on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

__all__ = ["HiddenStates"]


class HiddenStates:
    """A list of tensors that can live on disk.

    On disk every entry is a raw file of its own, rewritten in place: at most one entry is in
    memory at a time.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Args: folder: an existing folder for the files; None keeps everything in memory."""
        self._folder = folder
        self._memory: list[Tensor] = []
        self._layout: list[tuple[torch.Size, torch.dtype]] = []

    @classmethod
    def named(cls, folder: Path | None, name: str) -> HiddenStates:
        """In a folder of this name below `folder`; new ones take the place of old ones."""
        if folder is None:
            return cls()
        (folder / name).mkdir(parents=True, exist_ok=True)
        return cls(folder / name)

    def __len__(self) -> int:
        return len(self._layout)

    def append(self, value: Tensor) -> None:
        """Keep one more, behind the others."""
        self._layout.append((value.shape, value.dtype))
        if self._folder is None:
            self._memory.append(value)
        else:
            self._write(len(self._layout) - 1, value)

    def __getitem__(self, index: int) -> Tensor:
        if self._folder is None:
            return self._memory[index]
        shape, dtype = self._layout[index]
        raw = bytearray(self._path(index).read_bytes())
        return torch.frombuffer(raw, dtype=dtype).reshape(shape)

    def __setitem__(self, index: int, value: Tensor) -> None:
        self._layout[index] = (value.shape, value.dtype)
        if self._folder is None:
            self._memory[index] = value
        else:
            self._write(index, value)

    def _path(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{index:05d}.bin"

    def _write(self, index: int, value: Tensor) -> None:
        raw = value.detach().cpu().contiguous().view(torch.uint8).numpy()
        self._path(index).write_bytes(raw.tobytes())
