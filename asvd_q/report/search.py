"""What a rank search leaves behind: ranks to paste into a recipe, its table, its plots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from asvd_q.files import write_text
from asvd_q.report.plots import (
    MLP,
    NATS,
    part_of,
    plot_kept_ratios,
    plot_predictions,
    plot_sensitivities,
)
from asvd_q.report.tables import Table, size
from asvd_q.search.ladder import MeasuredAllocation
from asvd_q.search.ranks import SearchResult

__all__ = ["SEARCH", "search_findings", "search_summary", "search_table", "write_search"]

SEARCH = "search"
"""Folder of a search inside a run folder."""


def write_search(result: SearchResult, folder: Path) -> None:
    """Write `ranks.yaml`, `search.json` and the plots.

    `ranks.yaml` is a `decompose.ranks` section: a recipe takes it as explicit ranks.
    """
    ranks = {"decompose": {"ranks": result.ranks}}
    write_text(folder / "ranks.yaml", yaml.safe_dump(ranks, sort_keys=False))
    totals = result.allocation
    content = {
        "parameters": totals.parameters,
        "bytes": totals.bytes,
        "predicted_loss": totals.loss if result.predicts_loss else None,
        "verification": _verification(result),
        "layers": {
            name: {
                "rank": candidate.rank,
                "kept_ratio": result.kept[name],
                "predicted_loss": candidate.loss if result.predicts_loss else None,
                "losses" if result.predicts_loss else "sensitivities": _by_rank(
                    result.losses.get(name, {})
                ),
                "checked": _by_rank(result.checked.get(name, {})),
            }
            for name, candidate in totals.chosen.items()
        },
    }
    write_text(folder / "search.json", json.dumps(content, indent=1) + "\n")
    plot_sensitivities(_curves(result), folder, unit=_unit(result))
    plot_kept_ratios(result.kept, folder)
    if result.verification is None:
        for path in folder.glob("predicted-measured.*"):  # of an earlier search
            path.unlink()
    else:
        *others, chosen = (
            (one.allocation.loss, one.loss)
            for one in (*result.verification.others, result.verification.chosen)
        )
        plot_predictions(others, chosen, folder, unit=_unit(result))


def search_table(result: SearchResult) -> Table:
    """One row per layer: what was chosen, and what it is predicted to cost."""
    rows = tuple(
        (
            name,
            "dense" if candidate.rank is None else str(candidate.rank),
            f"{result.kept[name]:.3f}",
            f"{candidate.loss:.5f}",
            str(len(result.candidates[name])),
        )
        for name, candidate in result.allocation.chosen.items()
    )
    predicted = "predicted loss" if result.predicts_loss else "sensitivity"
    columns = ("layer", "rank", "kept", predicted, "candidates")
    return Table("Ranks found by the search", columns, rows)


def search_summary(result: SearchResult) -> list[str]:
    """What was chosen in all: its size, what it is predicted to lose, and what it does lose."""
    total, found = result.allocation, result.verification
    first = f"{total.parameters} parameters, {size(total.bytes)} in the searched layers"
    if result.predicts_loss:
        first += f"; predicted loss increase {total.loss:.5f} nats per token"
    if found is None:
        return [first]
    words = "measured on the calibration tokens with all of them truncated: "
    if found.perplexities is None:
        words += f"divergence {found.chosen.loss:.5f} nats per token"
    else:
        before, after = found.perplexities
        words += (
            f"loss increase {found.chosen.loss:.5f} nats per token, perplexity {before:.4f} to "
            f"{after:.4f} ({after / before - 1:+.2%})"
        )
    return [first, words]


def search_findings(result: SearchResult) -> list[str]:
    """The two observations of the ASVD paper, checked on this model.

    Its section 3 reports that MLP layers are more sensitive than attention layers, and that
    early layers can be compressed more.
    """
    kept = result.kept
    mlp = [ratio for name, ratio in kept.items() if part_of(name) == MLP]
    rest = [ratio for name, ratio in kept.items() if part_of(name) != MLP]
    names = list(kept)
    first, last = names[: len(names) // 2], names[len(names) // 2 :]
    found = []
    if mlp and rest:
        found.append(
            f"kept of MLP layers {_mean(mlp):.3f}, of attention layers {_mean(rest):.3f} (the "
            "paper: MLP layers are the more sensitive)"
        )
    if first and last:
        early, late = _mean([kept[name] for name in first]), _mean([kept[name] for name in last])
        found.append(
            f"kept in the first half of the model {early:.3f}, in the second {late:.3f} (the "
            "paper: early layers compress more)"
        )
    return found


def _by_rank(losses: Mapping[int, float]) -> dict[str, float]:
    return {str(rank): loss for rank, loss in sorted(losses.items())}


def _verification(result: SearchResult) -> dict[str, Any] | None:
    """Predictions beside measurements, by falling bytes."""
    found = result.verification
    if found is None:
        return None
    before, after = found.perplexities or (None, None)

    def losses(one: MeasuredAllocation) -> dict[str, float | None]:
        predicted = one.allocation.loss if result.predicts_loss else None
        return {"predicted_loss": predicted, "measured_loss": one.loss}

    everything = sorted((*found.others, found.chosen), key=lambda one: -one.allocation.bytes)
    return {
        "metric": found.metric,
        "dense_perplexity": before,
        "perplexity": after,
        **losses(found.chosen),
        "allocations": [
            {
                "parameters": one.allocation.parameters,
                "bytes": one.allocation.bytes,
                **losses(one),
                "chosen": one is found.chosen,
            }
            for one in everything
        ],
    }


def _unit(result: SearchResult) -> str:
    return NATS if result.predicts_loss else "no unit"


def _curves(result: SearchResult) -> dict[str, dict[float, float]]:
    """Layer → kept ratio → loss as it was measured or predicted."""
    return {
        name: {
            result.kept_ratio(name, candidate): candidate.loss
            for candidate in candidates
            if candidate.rank is not None
        }
        for name, candidates in result.candidates.items()
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
