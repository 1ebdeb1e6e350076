"""Writes a safetensors file of any size with one group of tensors in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from asvd_q.files import atomic_path

__all__ = ["TORCH_NAMES", "Group", "TensorSpec", "safetensors_bytes", "write_safetensors"]

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TORCH_NAMES = {name: dtype for dtype, name in _NAMES.items()}
"""torch's type for each name in a file's header."""

_ALIGNMENT = 8


@dataclass(frozen=True)
class TensorSpec:
    """Name, type and shape of a tensor that is to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Group:
    """Tensors that are made together: all of one layer, or a single one.

    Attributes:
        specs: what `load` returns, known before it is called.
        load: the tensors by name; called once, when they are written.
    """

    specs: tuple[TensorSpec, ...]
    load: Callable[[], Mapping[str, Tensor]]


def write_safetensors(path: Path, groups: Sequence[Group]) -> None:
    """Write one file, group after group.

    The header comes from the specs, so that each tensor goes straight to its place. Wider types
    come first, then names in order: every tensor is aligned, and the bytes are those that
    `safetensors.torch.save_file` writes.

    Source: https://github.com/huggingface/safetensors, section "Format".

    Raises:
        ValueError: a group does not load what its specs promise; the message names the tensor.
        ResourceError: the file cannot be written.
    """
    header, offsets, end = _head(spec for group in groups for spec in group.specs)
    with atomic_path(path) as partial, partial.open("wb") as stream:
        stream.write(header)
        start = stream.tell()
        stream.truncate(start + end)
        for group in groups:
            _write_group(stream, start, offsets, group)


def safetensors_bytes(specs: Iterable[TensorSpec]) -> int:
    """Length of the file that `write_safetensors` writes with these tensors."""
    header, _, end = _head(specs)
    return len(header) + end


def _head(specs: Iterable[TensorSpec]) -> tuple[bytes, dict[str, int], int]:
    """Everything before the data; where in the data each tensor begins; where the data ends."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for spec in sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name)):
        offsets[spec.name] = end
        end += spec.nbytes
        header[spec.name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offsets[spec.name], end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, offsets, end


def _write_group(stream: BinaryIO, start: int, offsets: Mapping[str, int], group: Group) -> None:
    """A function of its own, so that nothing of a group outlives it."""
    tensors = group.load()
    for spec in group.specs:
        tensor = tensors[spec.name]
        if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
            raise ValueError(
                f"{spec.name} is {tensor.dtype} {tuple(tensor.shape)}, "
                f"not {spec.dtype} {spec.shape}"
            )
        stream.seek(start + offsets[spec.name])
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        stream.write(flat.view(torch.uint8).numpy().data)
