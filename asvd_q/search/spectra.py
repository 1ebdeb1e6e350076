"""The spectra of a block's layers, from statistics collected while the block is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asvd_q.decomposition import Spectrum, spectrum
from asvd_q.decomposition.choice import make_scaling
from asvd_q.errors import NumericsError, first_line
from asvd_q.models.blockwise import BlockwiseModel, find_sites
from asvd_q.models.hidden import HiddenStates
from asvd_q.models.refs import Site, WeightRef
from asvd_q.progress import Progress, silent
from asvd_q.recipe import DecomposeSection
from asvd_q.statistics.collectors import SiteCollector, SiteStatistics, collecting
from asvd_q.statistics.fisher import fisher_information

__all__ = ["decomposing", "fisher_if_wanted", "singular_values", "spectra_by_block"]


@torch.no_grad()
def singular_values(
    model: BlockwiseModel,
    windows: Tensor,
    weights: Sequence[WeightRef],
    section: DecomposeSection,
    *,
    batch_size: int,
    folder: Path | None = None,
    progress: Progress = silent,
) -> dict[str, NDArray[np.float64]]:
    """Singular values of W S of every layer, from one pass through the dense model.

    Args:
        model: dense; nothing in it is changed.
        windows: int64 (samples, tokens).
        weights: layers inside the blocks.
        section: what S is. A diagonal one is normalised to mean square 1, so that values of
            different layers compare only up to a factor.
        batch_size: windows per forward pass.
        folder: an existing folder that keeps hidden states instead of memory.
        progress: called with the number of blocks done, up to the last that is needed.

    Returns:
        Layer → (min(out, in),), descending, float64; exactly 0 beyond the numerical rank. With
        whitening they are in the units of the outputs, so that layers compare. A layer that no
        token reaches is left out.

    Raises:
        NumericsError: naming a layer whose weight or inputs are not finite.
    """
    fisher = fisher_if_wanted(model, windows, weights, section, folder)
    hidden = HiddenStates.named(folder, "dense")
    with model.outside() as outside:
        model.embed(outside, windows[:1])  # the shape that sites are found on
        for batch in torch.split(windows, batch_size):
            hidden.append(model.embed(outside, batch))
    del outside
    last = max((weight.block for weight in weights if weight.block is not None), default=-1)
    found: dict[str, NDArray[np.float64]] = {}
    for index, block, spectra in spectra_by_block(model, hidden, weights, section, fisher):
        found |= {name: one.unit * one.values.cpu().numpy() for name, one in spectra.items()}
        del block, spectra  # before the next ones are made
        progress("sensitivity", index + 1, last + 1)
        if index >= last:
            break
    return {weight.name: found[weight.name] for weight in weights if weight.name in found}


def fisher_if_wanted(
    model: BlockwiseModel,
    windows: Tensor,
    weights: Sequence[WeightRef],
    section: DecomposeSection,
    folder: Path | None,
) -> dict[str, Tensor]:
    """Layer → Fisher information (in,), where the scaling is made of it; else nothing.

    Args:
        folder: keeps the blocks' inputs on disk instead of in memory.
    """
    if section.scaling != "fisher" or not weights:
        return {}
    return fisher_information(model, windows, list(weights), folder=folder)


@contextmanager
def decomposing(
    model: BlockwiseModel,
    block: nn.Module,
    index: int,
    sites: list[Site],
    weights: Sequence[WeightRef],
    section: DecomposeSection,
    fisher: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float64,
) -> Iterator[dict[str, Spectrum]]:
    """Collect while the caller runs the block, and decompose its layers when the context ends.

    One site's Gram matrix is dropped as soon as its layers are decomposed.

    Args:
        block: loaded.
        sites: of the block.
        weights: its layers to decompose.
        fisher: layer → (in,), for `scaling: fisher`.
        dtype: see `collecting`.

    Yields:
        Layer → spectrum, empty until the context has ended. A layer that no token reaches is
        left out.

    Raises:
        NumericsError: naming a layer whose weight or inputs are not finite, or whose
            decomposition fails.
    """
    found: dict[str, Spectrum] = {}
    refs = {weight.name: weight for weight in weights}
    sites = [site for site in sites if refs.keys() & set(site.modules)]
    pending: dict[str, SiteCollector] = {}
    if section.scaling == "none":
        yield found
    else:
        prefix = model.skeleton.block_name(index)
        with collecting(block, prefix, sites, model.device, dtype) as pending:
            yield found
    for site in sites:
        collector = pending.pop(site.name, None)
        statistics = None if collector is None else collector.result()
        for name in site.modules:
            if name in refs:
                found[name] = _spectrum(model, refs[name], section, statistics, fisher.get(name))


def spectra_by_block(
    model: BlockwiseModel,
    hidden: HiddenStates,
    weights: Sequence[WeightRef],
    section: DecomposeSection,
    fisher: Mapping[str, Tensor],
) -> Iterator[tuple[int, nn.Module, dict[str, Spectrum]]]:
    """Run the dense model from block to block and decompose each block's layers.

    Args:
        hidden: what enters the first block; every entry is replaced by what leaves the block
            that was yielded. Single windows of their length have been embedded too.
        weights: layers inside the blocks.
        fisher: layer → (in,), for `scaling: fisher`.

    Yields:
        Index, the loaded block, layer → spectrum as `decomposing` gives it.
    """
    for index in range(len(model)):
        block = model.load_block(index)
        wanted = [weight for weight in weights if weight.block == index]
        names = {weight.name for weight in wanted}
        sites = find_sites(model, block, index, hidden[0][:1], names) if wanted else []
        with decomposing(model, block, index, sites, wanted, section, fisher) as spectra:
            model.advance(block, index, hidden)
        yield index, block, spectra
        del block, spectra


def _spectrum(
    model: BlockwiseModel,
    ref: WeightRef,
    section: DecomposeSection,
    statistics: SiteStatistics | None,
    fisher: Tensor | None,
) -> Spectrum:
    weight = model.source.matrix(ref).to(model.device)
    try:
        return spectrum(weight, make_scaling(section, statistics, fisher), ref.name)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        reason = first_line(error)
        raise NumericsError(f"{ref.name}: its decomposition failed: {reason}") from error
    except NumericsError as error:
        message = str(error)
        named = message if message.startswith(ref.name) else f"{ref.name}: {message}"
        raise NumericsError(named) from error
