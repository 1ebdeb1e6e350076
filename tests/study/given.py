"""A small study of a random model, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

__all__ = ["PLOT", "write_study"]

PLOT = {"kind": "lines", "x": "decompose.alpha", "series": "decompose.scaling"}


def write_study(
    folder: Path,
    *,
    sections: dict[str, Any] | None = None,
    place: Path | None = None,
    **fields: Any,
) -> Path:
    """A study of four points, two of them of one model, with fields replaced or added.

    Args:
        sections: replaced in its recipe.
        place: where `model` and `text.txt` lie; the folder itself.
    """
    place = place or folder
    recipe = {
        "model": {"path": str(place / "model")},
        "calibration": {
            "corpora": [str(place / "text.txt")],
            "samples": 3,
            "window": 16,
            "batch_size": 2,
        },
        "decompose": {"kept_ratio": 0.7, "rank_multiple": 1},
        "evaluate": {"corpora": [str(place / "read.txt")], "window": 16, "windows": 3},
        **(sections or {}),
    }
    (folder / "recipe.yaml").write_text(_dumped(recipe))
    content: dict[str, Any] = {
        "recipe": "recipe.yaml",
        "vary": {
            "decompose.scaling": ["abs_mean", "whitening"],
            "decompose.alpha": [0.5, 1],
        },
        "output": str(folder / "study"),
        **fields,
    }
    path = folder / "study.yaml"
    path.write_text(_dumped(content))
    return path


def _dumped(content: dict[str, Any]) -> str:
    kept = {key: value for key, value in content.items() if value is not None}
    return yaml.safe_dump(kept, sort_keys=False)
