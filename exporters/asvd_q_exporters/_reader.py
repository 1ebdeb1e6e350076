"""Reads weight files with numpy alone. Shares nothing with what writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from asvd_q.errors import ArtefactError

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.plan import Slot

__all__ = ["MODULES", "WeightFiles", "as_float32", "as_matrix"]

MODULES: Mapping[Slot, str] = {"weight": "", "B": ".BLinear", "A": ".ALinear"}
"""What the modules of a layer are called, after its name."""

_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "u1",
}


class WeightFiles:
    """All tensors of a folder's safetensors files, each read when it is asked for.

    Raises:
        ArtefactError: no such files, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with path.open("rb") as stream:
                    length = int.from_bytes(stream.read(8), "little")
                    if length > path.stat().st_size:
                        raise ValueError("its header is longer than the file")
                    header: dict[str, Any] = json.loads(stream.read(length))
            except (OSError, ValueError) as error:
                raise ArtefactError(f"{path} is damaged: {error}") from error
            header.pop("__metadata__", None)
            for name, entry in header.items():
                self._entries[name] = (path, 8 + length, entry)
        if not self._entries:
            raise ArtefactError(f"{folder} holds no safetensors file")

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def path_of(self, layer: str, *modules: str) -> str:
        """The layer's name in the files, which may leave out the base model's prefix.

        Args:
            modules: names of tensors of the layer, one of which must be there.

        Raises:
            ArtefactError: there is none.
        """
        for path in (layer, layer.partition(".")[2]):
            if any(f"{path}.{module}" in self._entries for module in modules):
                return path
        raise ArtefactError(f"{self.folder} holds no weight of {layer}")

    def get(self, name: str) -> tuple[NDArray[Any], str]:
        """One tensor and its safetensors type; bfloat16 comes as its bits.

        Raises:
            ArtefactError: no tensor of that name, or the file ends before it does.
        """
        if name not in self._entries:
            raise ArtefactError(f"{self.folder} holds no tensor called {name}")
        path, start, entry = self._entries[name]
        begin, end = entry["data_offsets"]
        with path.open("rb") as stream:
            stream.seek(start + begin)
            content = stream.read(end - begin)
        try:
            array = np.frombuffer(content, _TYPES[entry["dtype"]]).reshape(entry["shape"])
        except (KeyError, ValueError) as error:
            raise ArtefactError(f"{path} is damaged at {name}: {error}") from error
        return array, entry["dtype"]


def as_float32(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """A float tensor in float32; bfloat16 is the upper half of its bits."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def as_matrix(array: NDArray[np.float32], *, transposed: bool = False) -> Tensor:
    """A matrix (out, in), which lies in the file as (in, out) when `transposed`."""
    return torch.from_numpy(np.ascontiguousarray(array.T if transposed else array))
