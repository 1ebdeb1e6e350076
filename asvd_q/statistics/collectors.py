"""What is measured of the activation at a site, in one pass, as means over tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asvd_q.errors import NumericsError
from asvd_q.models.refs import Site

__all__ = ["SiteCollector", "SiteStatistics", "collecting"]


@dataclass(frozen=True)
class SiteStatistics:
    """Statistics of the inputs x (in,) that reach a site, float64.

    Attributes:
        tokens: how many inputs were seen.
        abs_mean: (in,), E|x_j|.
        abs_max: (in,), max|x_j|.
        gram: (in, in), E[x xᵀ].
    """

    tokens: int
    abs_mean: Tensor
    abs_max: Tensor
    gram: Tensor

    @property
    def rms(self) -> Tensor:
        """(in,), the root of E[x_j²]."""
        return self.gram.diagonal().clamp(min=0).sqrt()


class SiteCollector:
    """Sums over tokens, in float64 whatever the activations' type."""

    def __init__(self, site: Site, device: torch.device | str) -> None:
        self.site = site
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
        inputs = activation.detach().reshape(-1, self.site.features).double()
        magnitude = inputs.abs()
        largest = magnitude.amax(0)
        if not torch.isfinite(largest).all():
            raise NumericsError(
                f"the input of {self.site.name} holds NaN or infinity: the model overflows in "
                "this compute_dtype, or its weights are damaged"
            )
        self._tokens += inputs.shape[0]
        self._abs_sum += magnitude.sum(0)
        self._abs_max = torch.maximum(self._abs_max, largest)
        self._products.addmm_(inputs.T, inputs)

    def result(self) -> SiteStatistics:
        """Means over all tokens seen."""
        count = max(self._tokens, 1)
        return SiteStatistics(
            tokens=self._tokens,
            abs_mean=self._abs_sum / count,
            abs_max=self._abs_max,
            gram=self._products / count,
        )


@contextmanager
def collecting(
    module: nn.Module, prefix: str, sites: list[Site], device: torch.device | str
) -> Iterator[dict[str, SiteCollector]]:
    """Collect at the given sites whenever `module` runs inside the context.

    Args:
        module: a loaded block, or everything outside the blocks.
        prefix: its dotted path in the model, "" for the whole.

    Yields:
        Site name → collector.
    """
    collectors = {site.name: SiteCollector(site, device) for site in sites}

    def hook_for(collector: SiteCollector) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            collector.add(args[0])

        return hook

    dot = f"{prefix}." if prefix else ""
    handles = [
        module.get_submodule(site.name.removeprefix(dot)).register_forward_pre_hook(
            hook_for(collectors[site.name])
        )
        for site in sites
    ]
    try:
        yield collectors
    finally:
        for handle in handles:
            handle.remove()
