"""Cheap allocations from the literature, to compare a search with.

All of them look at singular values alone: of W S (out, in) per layer, where S Sᵀ = E[x xᵀ] for
the two that speak of output error, as `asvd_q.decomposition.spectrum` gives them.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from asvd_q.errors import RankError
from asvd_q.plan import factor_parameters
from asvd_q.search.uniform import break_even_rank

__all__ = [
    "effective_rank",
    "effective_rank_ranks",
    "stable_rank",
    "stable_rank_sensitivities",
    "truncation_loss",
    "truncation_loss_ranks",
]

Spectra = Mapping[str, NDArray[np.float64]]
Shapes = Mapping[str, tuple[int, int]]


def effective_rank(values: NDArray[np.float64]) -> float:
    """exp of the entropy of the squared singular values, normalised to sum 1.

    Between 1 (one direction carries everything) and the number of values (all carry the same);
    0 for a layer of zeros.
    """
    energy = np.square(np.asarray(values, dtype=np.float64))
    total = energy.sum()
    if total == 0:
        return 0.0
    share = energy[energy > 0] / total
    return math.exp(-float((share * np.log(share)).sum()))


def stable_rank(values: NDArray[np.float64]) -> float:
    """‖W S‖_F² / σ_max², between 1 and the number of values; 0 for a layer of zeros."""
    energy = np.square(np.asarray(values, dtype=np.float64))
    return float(energy.sum() / energy.max()) if energy.any() else 0.0


def truncation_loss(values: NDArray[np.float64], rank: int) -> float:
    """‖(W − Ŵ_rank) S‖_F, the smallest that any matrix of that rank can reach."""
    return math.sqrt(float(np.square(np.sort(np.abs(values))[::-1][rank:]).sum()))


def stable_rank_sensitivities(
    spectra: Spectra, shapes: Shapes, ranks: Mapping[str, Sequence[int]]
) -> dict[str, dict[int, float]]:
    """A sensitivity of every rank of every layer without running the model.

    The published code takes −√(stable rank) · ratio^0.1. Here a constant is added, so that all
    are positive; that changes no comparison between them. They have no unit: use them with
    `strs` and a budget, which look at nothing but their order.

    Returns:
        Layer → rank → sensitivity, as `make_candidates` takes it.

    Source: ASVD, arXiv 2312.05821, and its code, `calib_sensitivity_stable_rank`.
    """
    roots = {name: math.sqrt(stable_rank(values)) for name, values in spectra.items()}
    largest = max(roots.values(), default=0.0)
    return {
        name: {
            rank: largest - roots[name] * (rank / break_even_rank(shapes[name])) ** 0.1
            for rank in ranks[name]
        }
        for name in spectra
    }


def effective_rank_ranks(
    spectra: Spectra,
    shapes: Shapes,
    budget: int,
    rank_multiple: int = 32,
    rule: Literal["proportional", "lagrange"] = "proportional",
) -> dict[str, int | None]:
    """Ranks in proportion to each layer's effective rank.

    Args:
        spectra: singular values of every layer.
        shapes: (out, in) of every layer.
        budget: parameters that all layers together may have.
        rank_multiple: that the target runtime's kernels want.
        rule: `proportional` makes the rank proportional to the effective rank R; `lagrange` to
            √(R / (out + in)), D-Rank's minimiser of Σ R / rank under the budget.

    Returns:
        Rank per layer, None for dense: a layer whose share comes to its break-even rank stays
        whole, and the others have what it does not use.

    Raises:
        RankError: the budget is below one multiple per layer.

    Source: D-Rank, arXiv 2509.25622, section 3 (effective rank, Lagrange); Swift-SVD,
    arXiv 2604.01609, takes the same measure of a layer.
    """

    def share(name: str) -> float:
        score = effective_rank(spectra[name])
        return math.sqrt(score / sum(shapes[name])) if rule == "lagrange" else score

    shares = {name: max(share(name), 1e-12) for name in spectra}
    return _fill(shapes, budget, rank_multiple, lambda name, rank: rank / shares[name])


def truncation_loss_ranks(
    spectra: Spectra,
    shapes: Shapes,
    budget: int,
    rank_multiple: int = 32,
    tokens: int = 1,
) -> dict[str, int | None]:
    """Ratios from what each layer loses when all are truncated alike.

    Among the layers of one kind (the last part of the name), the share of parameters that is
    removed is proportional to 1 / log L, L the truncation loss at the common ratio. What ratios
    outside 0 … 1 and the rounding leave over goes, by the same rule, to the other layers, which
    the paper does not say.

    Args:
        spectra: singular values of every layer, S from mean statistics per token.
        shapes: (out, in) of every layer.
        budget: parameters that all layers together may have.
        rank_multiple: that the target runtime's kernels want.
        tokens: of the calibration text. The paper's L is a norm over all tokens, and its log is
            not indifferent to the unit. e + L is taken for L, so that the log is at least 1.

    Returns:
        Rank per layer, None for dense.

    Raises:
        RankError: the budget is below one multiple per layer.

    Source: SVD-LLM V2, arXiv 2503.12340, algorithm 1.
    """
    kept = budget / max(sum(rows * columns for rows, columns in shapes.values()), 1)
    inverse: dict[str, float] = {}
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, values in spectra.items():
        rank = int(kept * break_even_rank(shapes[name]))
        loss = math.sqrt(tokens) * truncation_loss(values, rank)
        inverse[name] = 1 / math.log(math.e + loss)
        kinds[name.rsplit(".", 1)[-1]].append(name)
    removed = {
        name: len(names) * inverse[name] / sum(inverse[other] for other in names)
        for names in kinds.values()
        for name in names
    }
    return _fill(
        shapes,
        budget,
        rank_multiple,
        lambda name, rank: (rank / break_even_rank(shapes[name]) - 1) / removed[name],
    )


def _fill(
    shapes: Shapes, budget: int, rank_multiple: int, level: Callable[[str, int], float]
) -> dict[str, int | None]:
    """Raise the ranks together, one multiple at a time, until the budget is used.

    Args:
        level: of a layer at a rank, rising with the rank; the layer that would be lowest after
            its next step is raised first. This is how a proportion is kept with whole multiples
            and with layers that are full before the others.
    """
    ranks: dict[str, int | None] = {
        name: rank_multiple if factor_parameters(shape, rank_multiple) < _size(shape) else None
        for name, shape in shapes.items()
    }
    spent = sum(
        _size(shapes[name]) if rank is None else factor_parameters(shapes[name], rank)
        for name, rank in ranks.items()
    )
    if spent > budget:
        raise RankError(
            f"a budget of {budget} parameters cannot be reached: rank {rank_multiple} in every "
            f"layer takes {spent}; raise the budget or lower rank_multiple"
        )
    queue = [
        (level(name, rank + rank_multiple), order, name)
        for order, (name, rank) in enumerate(ranks.items())
        if rank is not None
    ]
    heapq.heapify(queue)
    while queue:
        _, order, name = heapq.heappop(queue)
        shape, rank = shapes[name], ranks[name]
        assert rank is not None
        raised = rank + rank_multiple
        after = min(factor_parameters(shape, raised), _size(shape))
        step = after - factor_parameters(shape, rank)
        if spent + step > budget:
            continue  # this layer is done; a smaller step of another may still fit
        spent += step
        if after == _size(shape):
            ranks[name] = None
            continue
        ranks[name] = raised
        heapq.heappush(queue, (level(name, raised + rank_multiple), order, name))
    return ranks


def _size(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]
