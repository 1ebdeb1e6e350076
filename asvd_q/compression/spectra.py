"""The singular values that layers were cut from, kept beside a run's store for its report.

    <run>/spectra.json     {"store_key": …, "layers": {name: LayerSpectrum}}

The file grows by a block before the store seals that block, so a run that was killed and goes on
leaves the same bytes as one that was not. Nothing is computed for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from asvd_q.files import write_text
from asvd_q.records import LayerSpectrum

__all__ = ["SPECTRA_FILE", "SpectraFile", "layer_spectrum", "read_spectra"]

SPECTRA_FILE = "spectra.json"

_POINTS = 128
_DIGITS = 5


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    store_key: str
    layers: dict[str, LayerSpectrum] = {}


class SpectraFile:
    """The file of one run, written block by block."""

    def __init__(self, folder: Path, store_key: str, order: Sequence[str]) -> None:
        """
        Args:
            folder: the run's.
            store_key: of the store that the layers go into; what the file holds of another one
                is dropped.
            order: names of all layers, in the order in which the file has them.
        """
        self._path = folder / SPECTRA_FILE
        self._key = store_key
        self._order = order
        self._layers = read_spectra(folder, store_key)

    def add(self, layers: Mapping[str, LayerSpectrum | None]) -> None:
        """Put the layers of a block into the file; a layer without a spectrum leaves it.

        The file is not begun before there is a spectrum to keep.
        """
        found = {**self._layers, **layers}
        kept = {name: one for name in self._order if (one := found.get(name)) is not None}
        if kept != self._layers:
            content = _Content(store_key=self._key, layers=kept)
            write_text(self._path, content.model_dump_json() + "\n")
            self._layers = kept


def read_spectra(folder: Path, store_key: str) -> dict[str, LayerSpectrum]:
    """Spectra of a run's layers, in model order; of a file that is missing or damaged, none.

    Args:
        store_key: of the run's store; a file that was written with another one has none of it.
    """
    try:
        content = _Content.model_validate_json((folder / SPECTRA_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}
    return content.layers if content.store_key == store_key else {}


def layer_spectrum(
    values: Tensor, rank: int, of: Literal["weight", "residual"] = "weight"
) -> LayerSpectrum:
    """A spectrum at no more than 128 ranks.

    Args:
        values: Σ (k,), descending, not negative.
        rank: where it was cut.
        of: what the values are those of.
    """
    values = values.double().cpu()
    numerical = int((values > 0).sum())
    squares = values.square()
    total = float(squares.sum())
    ranks = _spaced(numerical, _POINTS - 1)
    if rank <= numerical:
        ranks = sorted({*ranks, rank})
    relative = values[torch.tensor(ranks, dtype=torch.int64) - 1] / values[:1].clamp(min=1e-300)
    return LayerSpectrum(
        of=of,
        rank=rank,
        count=values.numel(),
        numerical_rank=numerical,
        kept=_rounded(float(squares[:rank].sum()) / total if total > 0 else 1.0),
        ranks=tuple(ranks),
        values=tuple(_rounded(value) for value in relative.tolist()),
    )


def _spaced(last: int, points: int) -> list[int]:
    """At most `points` ranks from 1 to `last`, both among them, evenly spaced on a log axis."""
    if last < 1:
        return []
    found = torch.logspace(0, torch.tensor(float(last)).log10().item(), points, dtype=torch.float64)
    return sorted({1, last, *(min(max(int(rank), 1), last) for rank in found.round().tolist())})


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
