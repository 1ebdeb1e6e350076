"""Recovers matrices from a checkpoint's bytes with numpy alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from asvd_q.artefact import read_metadata
from asvd_q_exporters._reader import WeightFiles, as_float32

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.plan import Form, Slot

__all__ = ["read_layers"]

_MODULES: dict[Form, dict[Slot, str]] = {
    "dense": {"weight": ""},
    "factors": {"B": ".BLinear", "A": ".ALinear"},
    "correction": {"weight": "", "B": ".BLinear", "A": ".ALinear"},
}
"""What the modules of a layer are called, after its name."""


def read_layers(folder: Path) -> Iterator[tuple[str, Mapping[Slot, Tensor]]]:
    """Every recorded layer's matrices, float32 (out, in).

    Raises:
        ArtefactError: a file is damaged, or a matrix is missing.
    """
    files = WeightFiles(folder)
    for record in read_metadata(folder).layers:
        path = files.path_of(record.name, "weight", "BLinear.weight")
        yield (
            record.name,
            {
                slot: _matrix(
                    files, f"{path}{module}.weight", record.form == "dense" and record.transposed
                )
                for slot, module in _MODULES[record.form].items()
            },
        )


def _matrix(files: WeightFiles, name: str, transposed: bool) -> Tensor:
    """A float matrix (out, in), which lies there as (in, out) when `transposed`."""
    array = as_float32(*files.get(name))
    return torch.from_numpy(array.T.copy() if transposed else array.copy())
