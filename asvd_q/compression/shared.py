"""Statistics of the dense model that several compressions on the same tokens look at."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from asvd_q.models.refs import WeightRef
from asvd_q.plan import Part
from asvd_q.statistics.collectors import SiteStatistics

__all__ = ["SharedStatistics", "statistics_bytes"]

_FLOAT64 = 8


class SharedStatistics:
    """What one compression has collected, kept in memory for those that come after it.

    All of them are of one model, one set of windows and one type of forward passes, and none
    follows the compressed model: their statistics are the same whatever becomes of the layers.

    Attributes:
        blocks: block → layer → statistics of its inputs.
        fisher: layer → (in,), see `fisher_information`; None as long as nobody has asked.
    """

    def __init__(self) -> None:
        self.blocks: dict[int, dict[str, SiteStatistics]] = {}
        self.fisher: dict[str, Tensor] | None = None

    def covers(self, parts: Iterable[Part]) -> bool:
        """Whether nothing has to be run for these parts of the model."""
        return all(part in self.blocks for part in parts)


def statistics_bytes(weights: Iterable[WeightRef]) -> int:
    """What the Gram matrices of the blocks' layers take, at most: some have one in common."""
    return sum(weight.shape[1] ** 2 * _FLOAT64 for weight in weights if weight.block is not None)
