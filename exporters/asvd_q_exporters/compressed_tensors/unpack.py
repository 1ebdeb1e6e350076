"""Recovers matrices from a compressed-tensors checkpoint's bytes with numpy alone.

Shares no code with the packer: words are read as the stream of bits that they are, and what the
codes mean is taken from the configuration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from asvd_q.artefact import read_metadata
from asvd_q.errors import ArtefactError
from asvd_q_exporters._reader import MODULES, WeightFiles, as_float32, as_matrix

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.plan import Slot

__all__ = ["read_layers", "unpack_matrix"]

_TENSORS = ("weight_packed", "weight")
"""One of these holds a matrix."""

_ROWS = 1 << 10
"""Rows that are unpacked at once: a bit takes a byte on the way."""


def read_layers(folder: Path) -> Iterator[tuple[str, Mapping[Slot, Tensor]]]:
    """Every recorded layer's matrices, float32 (out, in).

    Raises:
        ArtefactError: a file is damaged, or a matrix is missing.
    """
    files = WeightFiles(folder)
    groups = _Groups(folder)
    ends = [f"{module}{tensor}" for module in ("", "BLinear.") for tensor in _TENSORS]
    for record in read_metadata(folder).layers:
        path = files.path_of(record.name, *ends)
        yield (
            record.name,
            {
                slot: _matrix(
                    files,
                    path + MODULES[slot],
                    groups.of(record.name + MODULES[slot]),
                    record.form == "dense" and record.transposed,
                )
                for slot in record.slot_shapes()
            },
        )


class _Groups:
    """What the configuration says of modules.

    Raises:
        ArtefactError: it cannot be read, or speaks of something other than packed symmetric codes.
    """

    def __init__(self, folder: Path) -> None:
        try:
            config = json.loads((folder / "config.json").read_text())["quantization_config"]
            self._ignore: list[str] = config["ignore"]
            self._groups: list[tuple[list[str], Mapping[str, Any]]] = [
                (group["targets"], group["weights"]) for group in config["config_groups"].values()
            ]
            wanted = config["format"] == "pack-quantized" and all(
                weights["type"] == "int" and weights["symmetric"] for _, weights in self._groups
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtefactError(f"{folder} has no readable config.json: {error}") from error
        if not wanted:
            raise ArtefactError(f"{folder}: its codes are not packed symmetric ones")

    def of(self, module: str) -> Mapping[str, Any] | None:
        """The settings of a linear module; None when it is in floating point."""
        if any(_fits(module, name) for name in self._ignore):
            return None
        for targets, weights in self._groups:
            if any(target == "Linear" or _fits(module, target) for target in targets):
                return weights
        return None


def _fits(module: str, target: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), module) is not None
    return module == target


def _matrix(
    files: WeightFiles, module: str, weights: Mapping[str, Any] | None, transposed: bool
) -> Tensor:
    """float32 (out, in).

    Args:
        weights: settings of its codes; None where it is in floating point.
        transposed: it lies there as (in, out).
    """
    if weights is None:
        return as_matrix(as_float32(*files.get(f"{module}.weight")), transposed=transposed)
    parts = ("weight_packed", "weight_scale", "weight_shape")
    tensors = {name: files.get(f"{module}.{name}")[0] for name in parts}
    return as_matrix(unpack_matrix(tensors, int(weights["num_bits"]), weights["group_size"]))


def unpack_matrix(
    tensors: Mapping[str, NDArray[Any]], bits: int, group_size: int | None
) -> NDArray[np.float32]:
    """The matrix (out, in) that weight_packed, weight_scale and weight_shape stand for.

    Args:
        group_size: columns that share a scale; None for one scale per row.
    """
    rows, columns = (int(side) for side in tensors["weight_shape"])
    powers = 1 << np.arange(bits, dtype=np.uint16)
    groups = np.arange(columns) // (group_size or columns)
    matrix = np.empty((rows, columns), np.float32)
    for start in range(0, rows, _ROWS):
        part = slice(start, start + _ROWS)
        words = np.ascontiguousarray(tensors["weight_packed"][part].astype("<i4"))
        stream = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
        codes = stream[:, : columns * bits].reshape(-1, columns, bits) @ powers
        steps = codes.astype(np.float32) - (1 << (bits - 1))
        matrix[part] = steps * tensors["weight_scale"][part].astype(np.float32)[:, groups]
    return matrix
