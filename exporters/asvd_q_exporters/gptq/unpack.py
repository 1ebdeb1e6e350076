"""Recovers matrices from a GPTQ-format checkpoint's bytes with numpy alone.

Shares no code with the packer: words are read as the stream of bits that they are.
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

__all__ = ["CheckpointReader", "read_layers", "unpack_matrix", "unpack_rows"]


def read_layers(folder: Path) -> Iterator[tuple[str, Mapping[Slot, Tensor]]]:
    """Every recorded layer's matrices, float32 (out, in).

    Raises:
        ArtefactError: a file is damaged, or a matrix is missing.
    """
    reader = CheckpointReader(folder)
    for record in read_metadata(folder).layers:
        yield (
            record.name,
            {
                slot: reader.matrix(record.name, slot, slot == "weight" and record.transposed)
                for slot in record.slot_shapes()
            },
        )


class CheckpointReader:
    """Matrices of a GPTQ-format checkpoint, each read when it is asked for.

    Raises:
        ArtefactError: its settings or its weight files cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        try:
            config = json.loads((folder / "quantize_config.json").read_text())
            self._bits = int(config["bits"])
            self._offset = {"gptq": 1, "gptq_v2": 0}[config["checkpoint_format"]]
            self._rules = [
                (rule.startswith("-:"), re.compile(re.sub("^[+-]:", "", rule)), changes)
                for rule, changes in config.get("dynamic", {}).items()
            ]
        except (OSError, ValueError, KeyError, re.error) as error:
            raise ArtefactError(
                f"{folder} has no readable quantize_config.json: {error}"
            ) from error
        self._folder = folder
        self._files = WeightFiles(folder)

    def matrix(self, layer: str, slot: Slot, transposed: bool = False) -> Tensor:
        """float32 (out, in).

        Args:
            transposed: it lies there as (in, out) where it is not quantized.

        Raises:
            ArtefactError: it is missing or damaged, or a rule leaves it out that has codes.
        """
        suffix = MODULES[slot]
        ends = (f"{suffix}.{tensor}".removeprefix(".") for tensor in ("qweight", "weight"))
        module = self._files.path_of(layer, *ends) + suffix
        if f"{module}.qweight" in self._files:
            names = ("qweight", "qzeros", "scales", "g_idx")
            tensors = {name: self._files.get(f"{module}.{name}")[0] for name in names}
            # Rules are about names in the model, which those in files may be the ends of.
            return as_matrix(unpack_matrix(tensors, self._bits_of(layer + suffix), self._offset))
        return as_matrix(as_float32(*self._files.get(f"{module}.weight")), transposed=transposed)

    def _bits_of(self, module: str) -> int:
        """The width that the first rule for a module gives it."""
        for skips, pattern, changes in self._rules:
            if pattern.match(module):
                if skips:
                    raise ArtefactError(
                        f"{self._folder}: a rule leaves out {module}, a layer that has codes"
                    )
                return int(changes.get("bits", self._bits))
        return self._bits


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
