"""Recovers matrices from a bitsandbytes checkpoint's bytes with numpy alone.

Written from the format, and shares no code with what writes it.

Source: QLoRA, arXiv 2305.14314, section 3; bitsandbytes, `functional.QuantState`.
"""

from __future__ import annotations

import json
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


def read_layers(folder: Path) -> Iterator[tuple[str, Mapping[Slot, Tensor]]]:
    """Every recorded layer's matrices, float32 (out, in).

    Raises:
        ArtefactError: a file is damaged, or a matrix is missing.
    """
    files = WeightFiles(folder)
    for record in read_metadata(folder).layers:
        first = "weight" if record.rank is None else "BLinear.weight"
        path = files.path_of(record.name, first)
        yield (
            record.name,
            {
                slot: _matrix(
                    files, f"{path}{MODULES[slot]}.weight", slot == "weight" and record.transposed
                )
                for slot in record.slot_shapes()
            },
        )


def unpack_matrix(
    state: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]
) -> NDArray[np.float32]:
    """The matrix (out, in) that codes and scales stand for.

    Args:
        state: the JSON beside the tensors.
        tensors: by their names after the weight's; the weight itself under "".

    Raises:
        ValueError: it is not NF4, or codes or scales are missing.
    """
    rows, columns = state["shape"]
    count, block = rows * columns, state["blocksize"]
    scales = tensors["absmax"]
    if "nested_absmax" in tensors:
        nested = np.repeat(tensors["nested_absmax"], state["nested_blocksize"])[: scales.size]
        offset = np.float32(state["nested_offset"])
        scales = tensors["nested_quant_map"][scales] * nested + offset
    packed = tensors[""].reshape(-1)
    if state["quant_type"] != "nf4" or scales.dtype != np.float32:
        raise ValueError("not NF4 with scales in float32")
    if packed.size != (count + 1) // 2 or scales.size != (count + block - 1) // block:
        raise ValueError("codes or scales are missing")
    codes = np.stack((packed >> 4, packed & 15), axis=1).reshape(-1)[:count]
    matrix: NDArray[np.float32] = tensors["quant_map"][codes] * np.repeat(scales, block)[:count]
    return matrix.reshape(rows, columns)


def _matrix(files: WeightFiles, name: str, transposed: bool) -> Tensor:
    """A matrix (out, in).

    Args:
        transposed: it lies there as (in, out) where it is not quantized.
    """
    key = f"{name}.quant_state.bitsandbytes__nf4"
    if key not in files:
        return as_matrix(as_float32(*files.get(name)), transposed=transposed)
    parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    names = {"": name} | {part: f"{name}.{part}" for part in parts}
    try:
        state = json.loads(files.get(key)[0].tobytes())
        tensors = {part: files.get(at)[0] for part, at in names.items() if at in files}
        return as_matrix(unpack_matrix(state, tensors))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ArtefactError(f"{files.folder} is damaged at {name}: {error}") from error
