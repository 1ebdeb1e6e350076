"""A recipe's target as what the searched layers may take together."""

from __future__ import annotations

from asvd_q.plan import Plan
from asvd_q.recipe import SearchSection
from asvd_q.search.allocation import Budget, LossBound, Target

__all__ = ["is_met", "make_target"]


def make_target(search: SearchSection, dense: Plan, searched: set[str]) -> Target:
    """Subtract what the search cannot change.

    Args:
        dense: the plan in which every layer stays dense.
        searched: layers that the search may factorise; the others count as they are.
    """
    if search.max_loss_increase is not None:
        return LossBound(search.max_loss_increase, unit="bytes")
    others = [layer for layer in dense if layer.name not in searched]
    if search.kept_ratio is not None:
        total = sum(layer.parameters for layer in dense if layer.counts_for_ratio)
        fixed = sum(layer.parameters for layer in others if layer.counts_for_ratio)
        return Budget(
            "parameters",
            search.kept_ratio * total - fixed,
            lambda amount: f"a kept ratio of {(amount + fixed) / total:.4f}",
        )
    assert search.size_bytes is not None
    stored = dense.other_bytes + sum(layer.predicted_bytes for layer in others)
    return Budget(
        "bytes",
        search.size_bytes - stored,
        lambda amount: f"{(amount + stored) / 2**20:.2f} MiB for the whole model",
    )


def is_met(search: SearchSection, plan: Plan) -> bool:
    """Whether a whole plan stays within the recipe's budget.

    A bound on the loss is: a layer that keeps more than was planned loses no more.
    """
    if search.kept_ratio is not None:
        return plan.kept_ratio <= search.kept_ratio
    return search.size_bytes is None or plan.predicted_bytes <= search.size_bytes
