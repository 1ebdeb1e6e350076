"""A block's sites one after the other, each behind what was compressed before it.

The dense model and the compressed one are run side by side on the same tokens, so that a layer can
be fitted to what the dense model makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import nn

from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.hidden import HiddenStates
from asvd_q.models.refs import Site
from asvd_q.statistics.collectors import SiteStatistics, collecting_pairs

__all__ = ["site_by_site"]


def site_by_site(
    model: BlockwiseModel,
    index: int,
    sites: Sequence[Site],
    dense: nn.Module,
    compressed: Callable[[], nn.Module],
    dense_hidden: HiddenStates,
    hidden: HiddenStates,
) -> Iterator[tuple[Site, SiteStatistics]]:
    """Statistics of every site of a block, in the order in which the block reaches them.

    Args:
        dense: the block as the dense model has it.
        compressed: gives the block with all that is compressed so far; asked again for every
            site, so the caller compresses a site's layers before it takes the next one.
        dense_hidden, hidden: what enters the block in the dense and in the compressed model,
            entry by entry on the same tokens.

    Raises:
        ModelError: the two models send different tokens to a site.
        NumericsError: NaN or infinity in an activation.
    """
    prefix = model.skeleton.block_name(index)
    for site in sites:
        block = compressed()
        with collecting_pairs(dense, block, prefix, [site], model.device) as statistics:
            for position in range(len(hidden)):
                model.run_until(dense, index, dense_hidden[position], site.name)
                model.run_until(block, index, hidden[position], site.name)
        del block
        yield site, statistics()[site.name]
