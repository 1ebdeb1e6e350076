"""Recovers matrices from a checkpoint's bytes with numpy alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from asvd_q.artefact import read_metadata
from asvd_q_exporters._reader import MODULES, WeightFiles, as_float32, as_matrix

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.plan import Slot

__all__ = ["read_layers"]


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
                slot: as_matrix(
                    as_float32(*files.get(f"{path}{MODULES[slot]}.weight")),
                    transposed=record.form == "dense" and record.transposed,
                )
                for slot in record.slot_shapes()
            },
        )
