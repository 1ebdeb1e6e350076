"""What is measured of the activation at a site, in one pass, as means over tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from asvd_q.errors import ModelError, NumericsError
from asvd_q.models.refs import Site

__all__ = ["DenseInputs", "SiteCollector", "SiteStatistics", "collecting", "collecting_pairs"]


_STRIP = 128
"""Rows of a Gram matrix that are added up together; by symmetry the rest need not be."""


@dataclass(frozen=True)
class DenseInputs:
    """What the dense model feeds a site on the same tokens, as second moments, float64.

    Attributes:
        gram: (in, in), E[x xᵀ] of the dense model's inputs x.
        cross: (in, in), E[x x̂ᵀ] of those and the inputs x̂ that the site's statistics are of.
    """

    gram: Tensor
    cross: Tensor


@dataclass(frozen=True)
class SiteStatistics:
    """Statistics of the inputs x (in,) that reach a site, float64.

    Attributes:
        tokens: how many inputs were seen.
        abs_mean: (in,), E|x_j|.
        abs_max: (in,), max|x_j|.
        gram: (in, in), E[x xᵀ].
        dense: what stood there in the dense model; None where x is that itself, or where nobody
            asked.
    """

    tokens: int
    abs_mean: Tensor
    abs_max: Tensor
    gram: Tensor
    dense: DenseInputs | None = None

    @property
    def rms(self) -> Tensor:
        """(in,), the root of E[x_j²]."""
        return self.gram.diagonal().clamp(min=0).sqrt()


class SiteCollector:
    """Sums over tokens, in float64 whatever the activations' type.

    Attributes:
        dtype: of the products of one activation with itself, before they are added up.
    """

    def __init__(
        self, site: Site, device: torch.device | str, dtype: torch.dtype = torch.float64
    ) -> None:
        self.site = site
        self.dtype = dtype
        self._tokens = 0
        self._abs_sum = torch.zeros(site.features, dtype=torch.float64, device=device)
        self._abs_max = torch.zeros(site.features, dtype=torch.float64, device=device)
        self._products = torch.zeros(
            site.features, site.features, dtype=torch.float64, device=device
        )

    def add(self, activation: Tensor) -> None:
        """Take in an activation (…, in).

        Raises:
            NumericsError: NaN or infinity in it.
        """
        inputs = _rows(activation, self.site, self.dtype)
        magnitude = inputs.abs()
        largest = magnitude.amax(0)
        if not torch.isfinite(largest).all():
            raise NumericsError(
                f"the input of {self.site.name} holds NaN or infinity: the model overflows in "
                "this compute_dtype, or its weights are damaged"
            )
        self._tokens += inputs.shape[0]
        self._abs_sum += magnitude.sum(0, dtype=torch.float64)
        self._abs_max = torch.maximum(self._abs_max, largest.double())
        _add_products(self._products, inputs)

    def result(self) -> SiteStatistics:
        """Means over all tokens seen."""
        count = max(self._tokens, 1)
        return SiteStatistics(
            tokens=self._tokens,
            abs_mean=self._abs_sum / count,
            abs_max=self._abs_max,
            gram=_symmetric(self._products) / count,
        )


class _Pairs:
    """Sums over tokens of products with the dense model's inputs."""

    def __init__(self, site: Site, device: torch.device | str) -> None:
        shape = (site.features, site.features)
        self.site = site
        self.compressed = SiteCollector(site, device)
        self._gram = torch.zeros(shape, dtype=torch.float64, device=device)
        self._cross = torch.zeros(shape, dtype=torch.float64, device=device)
        self._waiting: list[Tensor] = []

    def add_dense(self, activation: Tensor) -> None:
        self._waiting.append(_rows(activation, self.site))

    def add(self, activation: Tensor) -> None:
        """Take in the compressed model's activation on the tokens of the oldest dense one.

        Raises:
            ModelError: other tokens reach the site than in the dense model.
        """
        inputs = _rows(activation, self.site)
        dense = self._waiting.pop(0) if self._waiting else inputs[:0]
        if dense.shape != inputs.shape:
            raise ModelError(
                f"{self.site.name}: the compressed model sends other tokens to it than the dense "
                "one does, so it cannot be refitted: leave it out by decompose.exclude and "
                "quantize.exclude, or set refit to false"
            )
        self.compressed.add(activation)
        _add_products(self._gram, dense)
        self._cross.addmm_(dense.T, inputs)

    def result(self) -> SiteStatistics:
        statistics = self.compressed.result()
        count = max(statistics.tokens, 1)
        gram = _symmetric(self._gram) / count
        return replace(statistics, dense=DenseInputs(gram, self._cross / count))


@contextmanager
def collecting(
    module: nn.Module,
    prefix: str,
    sites: list[Site],
    device: torch.device | str,
    dtype: torch.dtype = torch.float64,
) -> Iterator[dict[str, SiteCollector]]:
    """Collect at the given sites whenever `module` runs inside the context.

    Args:
        module: a loaded block, or everything outside the blocks.
        prefix: its dotted path in the model, "" for the whole.
        dtype: of a batch's products; float32 is twice as fast, and enough to rank layers.

    Yields:
        Site name → collector.
    """
    collectors = {site.name: SiteCollector(site, device, dtype) for site in sites}
    with _hooked(module, prefix, {name: found.add for name, found in collectors.items()}):
        yield collectors


@contextmanager
def collecting_pairs(
    dense: nn.Module,
    compressed: nn.Module,
    prefix: str,
    sites: list[Site],
    device: torch.device | str,
) -> Iterator[Callable[[], dict[str, SiteStatistics]]]:
    """Collect at the given sites while the caller runs both modules, batch by batch.

    Args:
        dense, compressed: the same block, or everything outside the blocks, in two models. On
            every batch the dense one runs first.

    Yields:
        What gives the statistics of the compressed module's inputs, `dense` included, by site.

    Raises:
        ModelError: the two get different tokens at a site, as a mixture of experts may cause.
    """
    pairs = {site.name: _Pairs(site, device) for site in sites}
    with (
        _hooked(dense, prefix, {name: pair.add_dense for name, pair in pairs.items()}),
        _hooked(compressed, prefix, {name: pair.add for name, pair in pairs.items()}),
    ):
        yield lambda: {name: pair.result() for name, pair in pairs.items()}


@contextmanager
def _hooked(
    module: nn.Module, prefix: str, takers: Mapping[str, Callable[[Tensor], None]]
) -> Iterator[None]:
    """Hand the input of some layers (full names) on whenever they run."""

    def hook_for(take: Callable[[Tensor], None]) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            take(args[0])

        return hook

    dot = f"{prefix}." if prefix else ""
    handles = [
        module.get_submodule(name.removeprefix(dot)).register_forward_pre_hook(hook_for(take))
        for name, take in takers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_products(total: Tensor, inputs: Tensor) -> None:
    """Add inputsᵀ inputs, strip by strip and without what lies left of the diagonal's block."""
    for start in range(0, len(total), _STRIP):
        strip = inputs[:, start : start + _STRIP]
        total[start : start + _STRIP, start:] += strip.T @ inputs[:, start:]


def _symmetric(total: Tensor) -> Tensor:
    """The whole matrix of what `_add_products` has added up."""
    return total.triu() + total.triu(1).T


def _rows(activation: Tensor, site: Site, dtype: torch.dtype = torch.float64) -> Tensor:
    """An activation (…, in) as (tokens, in)."""
    return activation.detach().reshape(-1, site.features).to(dtype)
