"""Allocation without a search: one ratio for all layers, or ranks given by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asvd_q.errors import RankError
from asvd_q.models.refs import WeightRef
from asvd_q.plan import factor_parameters
from asvd_q.recipe import matches

__all__ = ["RankChoice", "break_even_rank", "explicit_ranks", "uniform_ranks"]


@dataclass(frozen=True)
class RankChoice:
    """Rank of one layer, None for dense, and why it is not what one would expect."""

    rank: int | None
    reason: str | None = None


def break_even_rank(shape: tuple[int, int]) -> float:
    """The rank at which A and B have as many parameters as W (out, in)."""
    return shape[0] * shape[1] / (shape[0] + shape[1])


def uniform_ranks(
    weights: Sequence[WeightRef], kept_ratio: float, rank_multiple: int
) -> dict[str, RankChoice]:
    """Ranks that keep about the same share of every layer's parameters.

    Every rank is first rounded down to a multiple. What that leaves of the whole budget is then
    spent one multiple at a time, where the rounding took most, so that the total comes as close
    to `kept_ratio` as it can without passing it; only where every rank is one multiple can it
    be above.

    Args:
        weights: the layers that may be factorised.
        kept_ratio: of their parameters together, 0 < kept_ratio ≤ 1.
        rank_multiple: that the target runtime's kernels want.

    Returns:
        Layer name → choice. Layers whose smallest possible factors would not be smaller than
        the layer stay dense.
    """
    if kept_ratio >= 1:
        return {weight.name: RankChoice(None, "kept_ratio is 1") for weight in weights}
    choices: dict[str, RankChoice] = {}
    ranks: dict[str, int] = {}
    shapes = {weight.name: weight.shape for weight in weights}
    for name, shape in shapes.items():
        if factor_parameters(shape, rank_multiple) >= shape[0] * shape[1]:
            choices[name] = RankChoice(
                None, f"factors of rank {rank_multiple} are not smaller than the layer"
            )
            continue
        wanted = int(kept_ratio * break_even_rank(shape))
        ranks[name] = max(wanted // rank_multiple * rank_multiple, rank_multiple)

    def kept(name: str) -> float:
        return ranks[name] / break_even_rank(shapes[name])

    budget = kept_ratio * sum(rows * columns for rows, columns in shapes.values())
    spent = float(sum(shapes[name][0] * shapes[name][1] for name in choices))
    spent += sum(factor_parameters(shapes[name], rank) for name, rank in ranks.items())
    # Layers that no rank suits, or that are held up by their smallest rank, are paid by others.
    while spent > budget and any(rank > rank_multiple for rank in ranks.values()):
        name = max((name for name in ranks if ranks[name] > rank_multiple), key=kept)
        ranks[name] -= rank_multiple
        spent -= factor_parameters(shapes[name], rank_multiple)
    for name in sorted(ranks, key=lambda name: kept(name) - kept_ratio):
        step = factor_parameters(shapes[name], rank_multiple)
        raised = ranks[name] + rank_multiple
        pays = factor_parameters(shapes[name], raised) < shapes[name][0] * shapes[name][1]
        if kept(name) < kept_ratio and pays and spent + step <= budget:
            ranks[name] = raised
            spent += step
    choices |= {name: RankChoice(rank) for name, rank in ranks.items()}
    return {weight.name: choices[weight.name] for weight in weights}


def explicit_ranks(
    weights: Sequence[WeightRef], ranks: Mapping[str, int], key: str = "decompose.ranks"
) -> dict[str, RankChoice]:
    """Ranks by pattern, as the recipe gives them; the last match wins.

    Given ranks are taken as they are, neither rounded nor questioned for their bytes.

    Args:
        key: where the recipe has them, for messages.

    Raises:
        RankError: a rank above min(out, in), or a pattern that matches no layer.
    """
    used: set[str] = set()
    choices: dict[str, RankChoice] = {}
    for weight in weights:
        found = [pattern for pattern in ranks if matches(weight.name, [pattern])]
        used.update(found)
        if not found:
            choices[weight.name] = RankChoice(None, f"{key} names no rank for it")
            continue
        rank = ranks[found[-1]]
        if not 1 <= rank <= min(weight.shape):
            raise RankError(
                f"{key}.{found[-1]}: rank {rank} is outside 1 … {min(weight.shape)} "
                f"for {weight.name}, whose shape is {weight.shape}"
            )
        choices[weight.name] = RankChoice(rank)
    unused = [pattern for pattern in ranks if pattern not in used]
    if unused:
        raise RankError(
            f"{key}.{unused[0]} matches no layer of the model: names look like "
            f"{weights[0].name if weights else 'nothing, the model has no layers to factorise'}"
        )
    return choices
