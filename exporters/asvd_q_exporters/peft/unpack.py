"""Recovers matrices from a base checkpoint and its adapter with numpy alone.

Written from PEFT's documentation, and shares no code with what writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from asvd_q.artefact import read_metadata
from asvd_q.errors import ArtefactError
from asvd_q_exporters._reader import WeightFiles, as_float32
from asvd_q_exporters.gptq.unpack import CheckpointReader

if TYPE_CHECKING:
    from torch import Tensor

    from asvd_q.plan import Slot

__all__ = ["read_layers"]


def read_layers(folder: Path) -> Iterator[tuple[str, Mapping[Slot, Tensor]]]:
    """Every recorded layer's matrices, float32 (out, in).

    Raises:
        ArtefactError: a file is damaged, a matrix is missing, or the adapter's configuration
            does not fit its tensors.
    """
    base = CheckpointReader(folder / "base")
    adapter = _Adapter(folder / "adapter")
    for record in read_metadata(folder).layers:
        codes = base.matrix(record.name, "weight", record.transposed)
        matrices: dict[Slot, Tensor] = {"weight": codes}
        if record.form == "correction":
            matrices |= adapter.matrices(record.name)
        yield record.name, matrices


class _Adapter:
    """The tensors of an adapter, and what its configuration makes of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = WeightFiles(folder)
        try:
            self._config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
        except (OSError, ValueError) as error:
            raise ArtefactError(f"{folder} has no readable adapter_config.json: {error}") from error

    def matrices(self, layer: str) -> dict[Slot, Tensor]:
        """B (rank, in) and A (out, rank), which PEFT multiplies by alpha / rank: by 1."""
        prefix = f"base_model.model.{layer}"
        b = as_float32(*self._files.get(f"{prefix}.lora_A.weight"))
        a = as_float32(*self._files.get(f"{prefix}.lora_B.weight"))
        if layer not in self._setting("target_modules"):
            raise ArtefactError(f"{self._folder}: its target_modules leave out {layer}")
        rank = self._pattern("rank_pattern", "r", layer)
        alpha = self._pattern("alpha_pattern", "lora_alpha", layer)
        if not rank == alpha == b.shape[0] == a.shape[1]:
            raise ArtefactError(
                f"{self._folder}: {layer} has matrices of rank {b.shape[0]}, and its "
                f"configuration says rank {rank} and alpha {alpha}"
            )
        return {"B": torch.from_numpy(b.copy()), "A": torch.from_numpy(a.copy())}

    def _pattern(self, patterns: str, default: str, layer: str) -> int:
        """The value of the first pattern that the end of the name fits."""
        for pattern, value in self._setting(patterns).items():
            if re.match(rf"(.*\.)?({pattern})$", layer):
                return int(value)
        return int(self._setting(default))

    def _setting(self, key: str) -> Any:
        if key not in self._config:
            raise ArtefactError(f"{self._folder}/adapter_config.json has no {key}")
        return self._config[key]
