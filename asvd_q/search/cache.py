"""Losses of a sensitivity sweep, stored layer by layer as they come.

    <folder>/<key>/<layer>.json     {"key": …, "losses": {rank: nats per token}}

The key covers everything that a loss depends on, so a stale entry can never be taken for a fresh
one, and a sweep that was interrupted goes on with the layers that are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from asvd_q.files import make_folder, write_text

__all__ = ["LossCache"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    losses: dict[int, float]


class LossCache:
    """Losses per layer and rank, on disk."""

    def __init__(self, folder: Path, key: str) -> None:
        """Args: key: hash of all that the losses depend on."""
        self._key = key
        self._folder = folder / key[:16]

    def load(self) -> dict[str, dict[int, float]]:
        """Everything stored under the key, by layer."""
        return {
            path.stem: losses
            for path in sorted(self._folder.glob("*.json"))
            if (losses := self._read(path)) is not None
        }

    def add(self, layer: str, losses: Mapping[int, float]) -> None:
        """Store a layer's losses beside those it has; none at all for one that has none."""
        make_folder(self._folder)
        path = self._folder / f"{layer}.json"
        entry = _Entry(key=self._key, losses=(self._read(path) or {}) | dict(losses))
        write_text(path, entry.model_dump_json() + "\n")

    def _read(self, path: Path) -> dict[int, float] | None:
        """One layer's losses; None where the file is missing, damaged or of another key."""
        try:
            entry = _Entry.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return entry.losses if entry.key == self._key else None
