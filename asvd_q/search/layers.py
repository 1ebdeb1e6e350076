"""The layers that a search speaks of by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from asvd_q.errors import ModelError, RankError
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.refs import WeightRef

__all__ = ["layers_by_block"]


def layers_by_block(
    model: BlockwiseModel, ranks: Mapping[str, Collection[int]]
) -> dict[int, list[WeightRef]]:
    """Block → its layers among those named, without those that no rank is given for.

    Args:
        ranks: layer inside a block → the ranks it is to be truncated to.

    Raises:
        ModelError: a name that is no layer of a block.
        RankError: a rank outside 1 … min(out, in).
    """
    refs = {ref.name: ref for ref in model.skeleton.weights if ref.block is not None}
    found: dict[int, list[WeightRef]] = {}
    for name, wanted in ranks.items():
        if name not in refs:
            raise ModelError(f"{name} is to be truncated: no block of the model has that layer")
        most = min(refs[name].shape)
        for rank in set(wanted):
            if not 1 <= rank <= most:
                raise RankError(f"{name}: rank {rank} is outside 1 … {most}")
        block = refs[name].block
        if wanted and block is not None:
            found.setdefault(block, []).append(refs[name])
    return found
