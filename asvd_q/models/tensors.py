"""Tensors of a model folder: headers are read at once, a tensor when it is asked for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asvd_q.errors import ModelError, first_line

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TensorInfo", "index_tensors"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor, not yet read.

    Attributes:
        file: where it lies.
        shape: of what `load` gives.
        dtype: safetensors' name of its type ("BF16", "F32").
        load: reads it, into memory of its own. Raises ModelError, naming the file.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Tensor] = field(repr=False, compare=False)

    @property
    def numel(self) -> int:
        """Number of its entries."""
        return math.prod(self.shape)


def index_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of a model folder, each file's header checked against the file's length."""
    if (folder / _INDEX).is_file():
        try:
            names = json.loads((folder / _INDEX).read_text())["weight_map"].values()
            files = sorted({folder / os.path.basename(name) for name in names})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{folder / _INDEX} is damaged: {first_line(error)}") from error
    elif (folder / _SINGLE).is_file():
        files = [folder / _SINGLE]
    else:
        found = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt")]
        why = (
            f"only {found[0]}, a pickle, which is never loaded; convert it to safetensors"
            if found
            else f"neither {_SINGLE} nor {_INDEX}"
        )
        raise ModelError(f"model.path: {folder} has no weights that can be read: {why}")
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file} is named in {_INDEX} and is missing: download it again")
        tensors |= _header(file)
    if not tensors:
        raise ModelError(f"model.path: {folder} holds no tensors")
    return tensors


def _header(file: Path) -> dict[str, TensorInfo]:
    """Tensors that a header lists: 8 bytes of length, JSON, then the data it gives offsets into.

    Source: https://github.com/huggingface/safetensors, section "Format".
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise ModelError(f"{file} is truncated or not a safetensors file: copy it again")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            found = {
                name: TensorInfo(
                    file, tuple(entry["shape"]), entry["dtype"], partial(_load, file, name)
                )
                for name, entry in header.items()
            }
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(f"{file} has a damaged header: copy it again") from error
    if size != 8 + length + end:
        raise ModelError(
            f"{file} is truncated: it has {size} bytes and its header promises "
            f"{8 + length + end}; copy it again"
        )
    return found


def _load(file: Path, name: str) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        # Opened for every read: pages of a mapping that stays open count as our memory.
        with safe_open(file, framework="pt") as weights:
            tensor: Tensor = weights.get_tensor(name).clone()
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} cannot be read ({first_line(error)}): download or copy it again"
        ) from error
    return tensor
