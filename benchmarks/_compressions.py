"""Compressions of one model that benchmarks compare at equal bytes or equal parameters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from asvd_q.search.uniform import break_even_rank
from benchmarks._points import Evaluated, Points
from benchmarks.common import Bench, Compressed

__all__ = ["BASE", "RANK_MULTIPLE", "Case", "CasePoint", "compute_all", "merged", "ranks_for"]

BASE: dict[str, Any] = {
    "calibration": {"sequential": True},
    "decompose": {"scaling": "whitening", "refit": True},
    "quantize": {"refit": True, "clip": "mse", "group_size": 32},
}
"""What the recipes do, with groups that fit a model of this size."""

RANK_MULTIPLE = 32
"""Ranks are whole groups, as a runtime wants them."""


class Case(BaseModel):
    """A compression by name; equal cases give equal numbers.

    Attributes:
        model, window: name of the folder; tokens per window, of calibration and evaluation.
        name: of the compression, unique with the other fields.
        calibration: names of the corpora.
        method: of quantization; None quantizes nothing.
        bits: of all codes.
        kept: share of the parameters wanted, see `ranks_for`; None is a model without factors.
        rank: of what every layer has beside its codes; None has codes alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    window: int
    name: str
    calibration: tuple[str, ...]
    method: str | None = None
    bits: int | None = None
    kept: float | None = None
    rank: int | None = None


class CasePoint(Case, Evaluated):
    """What came of a case.

    Attributes:
        kept_ratio, layer_bytes: see `benchmarks.common.Compressed`; `bytes` is its total.
        parameters: of the layers before.
        disk_bytes: of the files that another package saved, where one did.
    """

    kept_ratio: float
    layer_bytes: int
    bytes: int
    parameters: int
    disk_bytes: int | None = None

    @classmethod
    def of(cls, case: Case, found: Compressed, bench: Bench) -> CasePoint:
        """The point of a case that this package has compressed."""
        weights = (weight for weight in bench.skeleton.weights if weight.block is not None)
        return cls(
            **case.model_dump(),
            kept_ratio=found.kept_ratio,
            layer_bytes=found.layer_bytes,
            bytes=found.total_bytes,
            parameters=sum(weight.shape[0] * weight.shape[1] for weight in weights),
            perplexity=found.perplexity,
        )

    @property
    def setting(self) -> Case:
        return Case.model_validate(self.model_dump(include=set(Case.model_fields)))

    @property
    def bits_per_weight(self) -> float:
        """Of the layers' bytes, over the weights that they had before."""
        return 8 * self.layer_bytes / self.parameters


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of a recipe with those of another over them, key by key."""
    result = dict(base)
    for key, value in changes.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def ranks_for(
    bench: Bench, kept: float, folder: Path, multiple: int | None = None
) -> dict[str, int]:
    """Ranks of the default search at a kept ratio.

    At 1 there is nothing to search: every layer gets the largest rank whose factors have no more
    parameters than the layer.

    Args:
        folder: keeps the sensitivities.
        multiple: what ranks are rounded to; `RANK_MULTIPLE` when None.
    """
    if kept == 1:
        return {
            weight.name: int(break_even_rank(weight.shape))
            for weight in bench.skeleton.weights
            if weight.block is not None
        }
    decompose = {"rank_multiple": multiple or RANK_MULTIPLE}
    sections = {"decompose": decompose, "search": {"kept_ratio": kept}}
    return bench.searched_ranks(sections, folder)


def compute_all(
    cases: Sequence[Case],
    points: Points[CasePoint],
    corpora: tuple[str, ...],
    compute: Callable[[Case], CasePoint],
    tell: Callable[[str], None],
) -> None:
    """Add what is not known yet."""
    for done, case in enumerate(cases):
        if points.has(case, corpora):
            continue
        start = time.perf_counter()
        point = compute(case)
        seconds = round(time.perf_counter() - start, 2)
        points.add(point.model_copy(update={"seconds": seconds}))
        tell(f"[{done + 1}/{len(cases)}] {case.name} {case.bits} {case.kept}: {seconds} s")
