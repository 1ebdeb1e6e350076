"""What `asvd-q plan` says of a recipe: layers, exports, bytes, memory and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asvd_q.budget.solving import BudgetResult
from asvd_q.preparation import Prepared
from asvd_q.report.budget import budget_summary
from asvd_q.report.estimate import Estimate, estimate
from asvd_q.report.outlook import (
    ExportOutlook,
    export_outlooks,
    outlook_remarks,
    outlook_table,
)
from asvd_q.report.tables import Table, plan_table, size
from asvd_q.search.ranks import SearchResult

__all__ = ["Planned", "plan_content", "plan_remarks", "plan_tables", "planned"]


@dataclass(frozen=True)
class Planned:
    """A recipe before it is carried out.

    Attributes:
        found: what its search has come to; None where it has none.
        needed: by the compression.
        outlooks: of its exports and of every other format.
    """

    prepared: Prepared
    found: SearchResult | BudgetResult | None
    needed: Estimate
    outlooks: list[ExportOutlook]


def planned(prepared: Prepared, found: SearchResult | BudgetResult | None) -> Planned:
    """Estimate what a recipe will need and make; changes nothing."""
    needed = estimate(prepared.recipe, prepared.skeleton, prepared.plan)
    return Planned(prepared, found, needed, export_outlooks(prepared))


def plan_content(planned: Planned) -> dict[str, Any]:
    """All of it, as JSON can hold it."""
    prepared, plan, found = planned.prepared, planned.prepared.plan, planned.found
    return {
        "plan": plan.model_dump(mode="json"),
        "kept_ratio": plan.kept_ratio,
        "predicted_bytes": plan.predicted_bytes,
        "predicted_loss": found.predicted_loss if found is not None else None,
        "estimate": planned.needed.model_dump(mode="json"),
        "exporters": [one.model_dump(mode="json") for one in planned.outlooks],
        "warnings": prepared.warnings,
        "untouched": dict(prepared.skeleton.untouched),
    }


def plan_tables(planned: Planned) -> tuple[Table, Table]:
    """Layers, and exports."""
    prepared = planned.prepared
    layers = plan_table(prepared.plan.layers, f"Plan for {prepared.source.name}")
    return layers, outlook_table(planned.outlooks)


def plan_remarks(planned: Planned) -> list[str]:
    """What stands below the tables, line by line."""
    prepared, plan, needed = planned.prepared, planned.prepared.plan, planned.needed
    budget = budget_summary(planned.found) if isinstance(planned.found, BudgetResult) else ()
    return [
        *outlook_remarks(planned.outlooks),
        f"kept {plan.kept_ratio:.4f} of the layers' parameters; the model as a store counts it: "
        f"{size(plan.predicted_bytes)}",
        *budget,
        *(f"warning: {warning}" for warning in prepared.warnings),
        f"compression on {prepared.device}: about {size(needed.memory_bytes)} of memory and "
        f"{needed.seconds:.0f} s, within a factor of two; nothing was changed",
    ]
