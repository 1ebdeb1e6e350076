"""Which rank for which layer: how to find out, and what to aim for."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from asvd_q.recipe.base import Bool, Count, Number, Section, Text

__all__ = ["SearchSection"]

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_RISE = re.compile(r"\s*\+\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*")
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]i?B|B)\s*", re.IGNORECASE)


class SearchSection(Section):
    """Rank search: the loss that each layer's truncation costs, and the best use of a budget.

    Source: Sensitivity-based Truncation Rank Searching, ASVD, arXiv 2312.05821, section 3.
    """

    kept_ratio: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Target: parameters of all layers together, after / before."""

    size: Text | None = None
    """Target: bytes of the whole model as a store counts them, such as "3.2 GiB"."""

    max_loss_increase: Annotated[Number, Field(gt=0)] | None = None
    """Target: the smallest model whose predicted loss rises by no more than this, nats per token;
    0.02 is a perplexity 2 % higher."""

    perplexity: Annotated[Number, Field(gt=0)] | Text | None = None
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

    @field_validator("perplexity", mode="before")
    @classmethod
    def _readable_perplexity(cls, value: Any) -> Any:
        if isinstance(value, str):
            rise = _RISE.fullmatch(value)
            readable = rise is not None and float(rise[1]) > 0
        else:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            readable = value is None or (number and 0 < value < math.inf)
        if not readable:
            raise ValueError(
                'allowed is a number above 0, or a rise above the dense model\'s such as "+2 %"'
            )
        return value

    @field_validator("size")
    @classmethod
    def _readable_size(cls, size: str | None) -> str | None:
        if size is not None and not _SIZE.fullmatch(size):
            raise ValueError("allowed is a number and a unit: B, KB, MB, GB, KiB, MiB or GiB")
        return size

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
        if self.size is None:
            return None
        found = _SIZE.fullmatch(self.size)
        assert found is not None
        return int(float(found[1]) * _UNITS[found[2].upper()])

    @property
    def perplexity_rise(self) -> float | None:
        """`perplexity` as a share of the dense model's: 0.02 for "+2 %"; None for a number."""
        if not isinstance(self.perplexity, str):
            return None
        found = _RISE.fullmatch(self.perplexity)
        assert found is not None
        return float(found[1]) / 100
