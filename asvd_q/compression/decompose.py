"""One layer's decomposition, as the recipe's `decompose` section says."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from asvd_q.decomposition import (
    Factors,
    latent_rotation,
    refit_left,
    refit_target,
    rotate,
    spectrum,
    truncate,
)
from asvd_q.decomposition.choice import make_scaling
from asvd_q.plan import LayerPlan
from asvd_q.recipe import DecomposeSection
from asvd_q.statistics.collectors import SiteStatistics

__all__ = ["Decomposition", "decompose"]


@dataclass(frozen=True)
class Decomposition:
    """What came of one layer.

    Attributes:
        target: the matrix (out, in) that the factors approximate: W, or what it was refitted to.
        factors: float64.
        values: singular values (k,) that they were cut from.
        notes: what a reader of the layer's record should know.
    """

    target: Tensor
    factors: Factors
    values: Tensor
    notes: tuple[str, ...]


def decompose(
    weight: Tensor,
    plan: LayerPlan,
    section: DecomposeSection,
    statistics: SiteStatistics | None,
    fisher: Tensor | None,
    seed: int,
) -> Decomposition:
    """Factors of the planned rank, refitted and rotated where the recipe says so.

    Args:
        weight: W (out, in).
        plan: of a layer that becomes factors.
        statistics: of the layer's site; None only for `scaling: none`.
        fisher: (in,), see `make_scaling`.
        seed: of the rotation.

    Raises:
        NumericsError: NaN or infinity in the weight or the statistics.
    """
    assert plan.rank is not None
    notes: list[str] = []
    scaling = make_scaling(section, statistics, fisher)
    refit = None if statistics is None or not section.refit else statistics.dense
    if refit is not None:
        assert statistics is not None
        weight = refit_target(weight, statistics.gram, refit.cross, section.refit_damping)
    found = spectrum(weight, scaling, plan.name)
    notes.extend(scaling.notes)
    if found.numerical_rank < plan.rank:
        notes.append(
            f"numerical rank {found.numerical_rank} is below the planned {plan.rank}: "
            "the rest of the factors is zero"
        )
    factors = truncate(found, plan.rank, section.sigma_power)
    if refit is not None and section.scaling != "whitening":
        assert statistics is not None
        factors = refit_left(factors, found.weight, statistics.gram)
    if section.rotation != "none":
        factors = rotate(factors, latent_rotation(plan.rank, section.rotation, seed, plan.name))
    return Decomposition(found.weight, factors, found.values, tuple(notes))
