"""From a recipe's words to the scaling matrix."""

from __future__ import annotations

from typing import assert_never

from torch import Tensor

from asvd_q.decomposition.scaling import (
    Scaling,
    diagonal_scaling,
    identity_scaling,
    whitening_scaling,
)
from asvd_q.recipe import DecomposeSection
from asvd_q.statistics.collectors import SiteStatistics

__all__ = ["make_scaling"]


def make_scaling(
    section: DecomposeSection, statistics: SiteStatistics | None, fisher: Tensor | None
) -> Scaling:
    """The scaling matrix that the recipe asks for.

    Args:
        statistics: of the layer's site; may be None only for `scaling: none`.
        fisher: (in,), for `scaling: fisher` only.
    """
    if section.scaling == "none":
        return identity_scaling()
    assert statistics is not None
    match section.scaling:
        case "whitening":
            return whitening_scaling(statistics.gram, section.damping)
        case "abs_mean":
            statistic = statistics.abs_mean
        case "abs_max":
            statistic = statistics.abs_max
        case "rms":
            statistic = statistics.rms
        case "fisher":
            assert fisher is not None
            statistic = fisher.to(statistics.gram.device)
        case _:
            assert_never(section.scaling)
    return diagonal_scaling(statistic, section.alpha, section.damping)
