"""Which rank for which layer: how to find out, and what to aim for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from asvd_q.recipe.amounts import Perplexity, Size, perplexity_rise, size_bytes
from asvd_q.recipe.base import Bool, Count, Number, Section

__all__ = ["SearchSection"]


class SearchSection(Section):
    """Rank search: the loss that each layer's truncation costs, and the best use of a budget.

    Source: Sensitivity-based Truncation Rank Searching, ASVD, arXiv 2312.05821, section 3.
    """

    kept_ratio: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Target: parameters of all layers together, after / before."""

    size: Size | None = None
    """Target: bytes of the whole model as a store counts them, such as "3.2 GiB"."""

    max_loss_increase: Annotated[Number, Field(gt=0)] | None = None
    """Target: the smallest model whose predicted loss rises by no more than this, nats per token;
    0.02 is a perplexity 2 % higher."""

    perplexity: Perplexity = None
    """Target: the smallest model whose measured perplexity on the calibration text stays at or
    under this: a number, or "+2 %" above the dense model's."""

    sensitivity: Literal["exact", "fast", "hybrid", "stable_rank"] = "fast"
    """exact runs the model for every layer and ratio; fast predicts every rank of every layer
    from two passes; hybrid predicts likewise, and measures the ranks that the choice hangs on;
    stable_rank orders ranks by singular values alone, for method strs and a budget."""

    metric: Literal["perplexity", "kl"] = "perplexity"
    """What exact measures: the loss on the corpus, or the divergence from the dense model."""

    labels: Literal["corpus", "sampled"] = "sampled"
    """What fast and hybrid differentiate: tokens sampled from the model, which predicts the
    divergence from the dense model, or the corpus' next tokens, which predicts the loss on that
    corpus."""

    method: Literal["optimal", "strs"] = "optimal"
    """optimal solves the choice exactly; strs cuts the sorted list of candidates, as the paper."""

    ratios: Annotated[tuple[Annotated[Number, Field(gt=0, lt=1)], ...], Field(min_length=1)] = (
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
    )
    """Kept ratios that exact and stable_rank try; fast and hybrid have every multiple of
    decompose.rank_multiple."""

    candidates_per_batch: Count = 1
    """Candidates that exact and hybrid carry through the model together: more needs more memory,
    is faster on a GPU and slower on a CPU."""

    verify: Bool = True
    """Measure the model with all chosen layers truncated together, at this target and around
    it: what was predicted is then reported beside what it is. Costs a few forward passes."""

    @model_validator(mode="after")
    def _one_target(self) -> SearchSection:
        names = ("kept_ratio", "size", "max_loss_increase", "perplexity")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"needs exactly one target of {', '.join(names)}, and has {found}")
        return self

    @model_validator(mode="after")
    def _stable_rank_orders_only(self) -> SearchSection:
        if self.predicts_loss:
            return self
        if self.kept_ratio is None and self.size is None:
            raise ValueError(
                "sensitivity stable_rank predicts no loss, so its target is a budget: give "
                "`kept_ratio` or `size`, or take sensitivity fast, hybrid or exact"
            )
        if self.method != "strs":
            raise ValueError(
                "sensitivity stable_rank orders ranks without predicting a loss, which is enough "
                "for a cut and not for a sum: set `method: strs`"
            )
        return self

    @property
    def predicts_loss(self) -> bool:
        """Whether sensitivities are nats per token; else they only order the candidates."""
        return self.sensitivity != "stable_rank"

    @property
    def size_bytes(self) -> int | None:
        """`size` in bytes."""
        return None if self.size is None else size_bytes(self.size)

    @property
    def perplexity_rise(self) -> float | None:
        """`perplexity` as a share of the dense model's: 0.02 for "+2 %"; None for a number."""
        return perplexity_rise(self.perplexity)
