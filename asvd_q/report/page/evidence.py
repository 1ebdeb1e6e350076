"""What a search left in the run folder about the layers that the run went on to compress."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asvd_q.errors import ArtefactError
from asvd_q.records import LayerRecord
from asvd_q.report.run import RunRecord
from asvd_q.report.search import SEARCH

__all__ = ["Evidence", "search_evidence"]

_BUDGET, _RANKS = "budget.json", "search.json"


@dataclass(frozen=True)
class Evidence:
    """Predictions of a search.

    Attributes:
        losses: layer → predicted loss increase of the form that was chosen, nats per token.
        remarks: what it predicted in all, and what was measured of it.
    """

    losses: Mapping[str, float]
    remarks: tuple[str, ...]


def search_evidence(folder: Path, record: RunRecord) -> Evidence | None:
    """What the run's search found; None where it had none, or a later one took its place.

    Raises:
        ArtefactError: a file of the search is damaged.
    """
    if not any(stage.stage == "search" for stage in record.stages):
        return None
    for name in (_BUDGET, _RANKS):
        path = folder / SEARCH / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_bytes())
            if not _is_of(content["layers"], record):
                continue
            losses = {
                layer: float(found["predicted_loss"])
                for layer, found in content["layers"].items()
                if found["predicted_loss"] is not None
            }
            remarks = _budget(content) if name == _BUDGET else _ranks(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(
                f"{path} is damaged or of another version: run `asvd-q search` again, or remove it"
            ) from error
        return Evidence(losses, tuple(remarks))
    return None


def _is_of(layers: Mapping[str, Mapping[str, Any]], record: RunRecord) -> bool:
    """Whether the forms are those that were made, but for layers with a reason of their own."""
    known = {layer.name: layer for layer in record.layers}
    return all(
        name in known and (known[name].reason is not None or _same(known[name], found))
        for name, found in layers.items()
    )


def _same(layer: LayerRecord, found: Mapping[str, Any]) -> bool:
    """A budget says how each matrix is quantized too."""
    done = layer.model_dump(mode="json", include={"rank", "quantization"})
    return all(found[key] == done[key] for key in done if key in found)


def _budget(content: Mapping[str, Any]) -> list[str]:
    forms = ", ".join(f"{count} {form}" for form, count in content["forms"].items())
    return [
        f"Forms chosen under a budget, counted as {content['format']} stores them: {forms}, at "
        f"{content['bits_per_weight']:.3f} bits per weight.",
        f"Predicted loss increase: {content['predicted_loss']:.5f} nats per token.",
    ]


def _ranks(content: Mapping[str, Any]) -> list[str]:
    found, remarks = content["verification"], []
    if content["predicted_loss"] is not None:
        remarks.append(
            f"Predicted loss increase of the chosen ranks: {content['predicted_loss']:.5f} nats "
            "per token."
        )
    if found is None:
        return remarks
    words = (
        "Measured on the calibration tokens with these layers truncated, before refit and codes: "
        f"{found['measured_loss']:.5f}"
    )
    if found["perplexity"] is not None:
        words += f", perplexity {found['dense_perplexity']:.3f} to {found['perplexity']:.3f}"
    return [*remarks, f"{words}."]
