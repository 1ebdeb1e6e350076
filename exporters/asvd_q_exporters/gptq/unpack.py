"""Recovers matrices from a GPTQ-format checkpoint's bytes with numpy alone.

Shares no code with the packer: words are read as the stream of bits that they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from asvd_q.artefact import read_metadata
from asvd_q.errors import ArtefactError
from asvd_q_exporters._reader import WeightFiles, as_float32

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.plan import Slot

__all__ = ["read_layers", "unpack_matrix", "unpack_rows"]

_MODULES: Mapping[Slot, str] = {"weight": "", "B": ".BLinear", "A": ".ALinear"}


def read_layers(folder: Path) -> Iterator[tuple[str, Mapping[Slot, Tensor]]]:
    """Every recorded layer's matrices, float32 (out, in).

    Raises:
        ArtefactError: a file is damaged, or a matrix is missing.
    """
    try:
        config = json.loads((folder / "quantize_config.json").read_text())
        bits = int(config["bits"])
        offset = {"gptq": 1, "gptq_v2": 0}[config["checkpoint_format"]]
    except (OSError, ValueError, KeyError) as error:
        raise ArtefactError(f"{folder} has no readable quantize_config.json: {error}") from error
    files = WeightFiles(folder)
    for record in read_metadata(folder).layers:
        path = files.path_of(record.name, *_first_tensors(record.rank is not None))
        matrices: dict[Slot, Tensor] = {}
        for slot in record.slot_shapes():
            module = path + _MODULES[slot]
            if f"{module}.qweight" in files:
                found = _quantized(files, module, bits, offset)
            else:
                found = as_float32(*files.get(f"{module}.weight"))
                if slot == "weight" and record.transposed:
                    found = found.T
            matrices[slot] = torch.from_numpy(np.array(found, order="C"))
        yield record.name, matrices


def unpack_rows(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Values packed along the first dimension: int32 (words, columns) → uint8 (rows, columns)."""
    columns = words.shape[1]
    stream = np.unpackbits(
        np.ascontiguousarray(words.T.astype("<i4")).view(np.uint8), axis=1, bitorder="little"
    )
    values = stream.reshape(columns, -1, bits) @ (1 << np.arange(bits, dtype=np.uint16))
    return values.T.astype(np.uint8)


def unpack_matrix(
    tensors: Mapping[str, NDArray[Any]], bits: int, zero_offset: int
) -> NDArray[np.float32]:
    """The matrix (out, in) that qweight, qzeros, scales and g_idx stand for, in float32.

    Args:
        zero_offset: what the format took from every zero point before it stored them.
    """
    groups = tensors["g_idx"]
    codes = unpack_rows(tensors["qweight"], bits)[: len(groups)]
    zeros = unpack_rows(tensors["qzeros"].T, bits).T[:, : codes.shape[1]]
    shifted = (zeros.astype(np.int32) + zero_offset) % (1 << bits)
    scales = tensors["scales"].astype(np.float32)
    steps = (codes.astype(np.int32) - shifted[groups]).astype(np.float32)
    matrix: NDArray[np.float32] = (steps * scales[groups]).T
    return matrix


def _quantized(files: WeightFiles, module: str, bits: int, offset: int) -> NDArray[np.float32]:
    names = ("qweight", "qzeros", "scales", "g_idx")
    return unpack_matrix({name: files.get(f"{module}.{name}")[0] for name in names}, bits, offset)


def _first_tensors(factors: bool) -> tuple[str, ...]:
    module = "BLinear." if factors else ""
    return (f"{module}qweight", f"{module}weight")
