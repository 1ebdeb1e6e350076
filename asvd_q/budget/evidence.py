"""What the dense model feeds the layers of a block, and how the loss reacts to their outputs.

With g the gradient of the summed loss at a layer's output and δy the error that a form of the
layer puts there, the loss rises by ½ mean(d²), d = g · δy per token: the second-order term with the
squared gradient for the curvature. Labels are drawn from the model, so the term is the divergence
from the dense model, and the first-order term has the expectation 0.

A bounded sample of tokens is kept, the same for all layers: inputs, and gradients at outputs. What
the sample says of a layer is scaled by Σ |g|² |x|² over all tokens against that over the sample,
which takes most of the noise out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asvd_q.models.refs import Site
from asvd_q.statistics.collectors import SiteCollector, SiteStatistics

__all__ = ["BlockEvidence", "LayerEvidence", "sample_positions"]


@dataclass(frozen=True)
class LayerEvidence:
    """What is known of one layer.

    Attributes:
        statistics: of all inputs that reach it.
        inputs: float32 (tokens, in), the sample.
        gradients: float32 (tokens, out), of the summed loss at its output.
        scale: turns a mean over the sample into nats per predicted token.
    """

    statistics: SiteStatistics
    inputs: Tensor
    gradients: Tensor
    scale: float

    def loss(self, errors: Tensor) -> float:
        """Predicted loss increase, nats per token, of output errors (tokens, out)."""
        d = (errors * self.gradients).sum(1)
        return 0.5 * self.scale * float(d.double().square().mean())

    def losses_by_rank(self, left: Tensor, outputs: Tensor) -> Tensor:
        """The same for the errors of all truncations at once.

        Args:
            left: U (out, k) with orthonormal columns; rank r leaves U_r U_rᵀ y of an output y.
            outputs: y (tokens, out), without the bias.

        Returns:
            float64 (k + 1,), entry r for rank r; entry k is 0.
        """
        basis = left.to(outputs.dtype).flip(1)
        d = (outputs @ basis).mul_(self.gradients @ basis).cumsum_(1)
        curve = 0.5 * self.scale * d.double().square_().mean(0).flip(0)
        return torch.cat([curve, curve.new_zeros(1)])


def sample_positions(windows: int, tokens: int, sample: int, seed: int) -> Tensor:
    """Token positions of a sample, equally many from every window: int64 (windows, count).

    The last token of a window predicts nothing, and is never one of them.
    """
    count = min(max(-(-sample // windows), 1), tokens - 1)
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(windows, tokens - 1, generator=generator)
    return numbers.argsort(1)[:, :count].sort(1).values


class BlockEvidence:
    """Collects while a block is run forwards and backwards; a `Probe` of its layers' outputs."""

    def __init__(
        self,
        block: nn.Module,
        prefix: str,
        sites: Sequence[Site],
        positions: Tensor,
        windows: torch.Size,
        device: torch.device,
    ) -> None:
        """
        Args:
            block: loaded.
            prefix: its dotted path.
            positions: see `sample_positions`.
            windows: shape of the calibration tokens, (samples, tokens).
        """
        self._positions = positions
        self._tokens = windows[1]
        self._predicted = windows[0] * (windows[1] - 1)
        self._layers = {
            name: (block.get_submodule(name.removeprefix(prefix + ".")), site.name)
            for site in sites
            for name in site.modules
        }
        self._collectors = {site.name: SiteCollector(site, device, torch.float32) for site in sites}
        self._inputs: dict[str, list[Tensor]] = {site.name: [] for site in sites}
        self._energies: dict[str, list[Tensor]] = {site.name: [] for site in sites}
        self._gradients: dict[str, list[Tensor]] = {name: [] for name in self._layers}
        self._weighted = dict.fromkeys(self._layers, 0.0)
        self._seen: list[tuple[str, Tensor, Tensor]] = []
        self._batch = 0
        self._handles: list[Any] = []

    def __enter__(self) -> BlockEvidence:
        self._handles = [
            module.register_forward_hook(self._noting(name))
            for name, (module, _) in self._layers.items()
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._seen.clear()

    def tensors(self) -> Sequence[Tensor]:
        """The layers' outputs on the last batch."""
        return [output for _, output, _ in self._seen]

    @torch.no_grad()
    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Take in one batch's gradients at the outputs; None where an output is unused."""
        windows = 0
        energies: dict[str, Tensor] = {}
        for (name, output, inputs), gradient in zip(self._seen, gradients, strict=True):
            site = self._layers[name][1]
            windows = max(windows, output.shape[0] if output.dim() == 3 else 0)
            found = torch.zeros_like(output) if gradient is None else gradient
            rows = found.float().flatten(0, -2)
            if site not in energies:  # layers of a site see the same input
                self._collectors[site].add(inputs)
                flat = inputs.detach().float().flatten(0, -2)
                energies[site] = flat.square().sum(1)
                self._inputs[site].append(flat[self._rows(inputs)])
                self._energies[site].append(energies[site])
            self._weighted[name] += float((rows.square().sum(1) * energies[site]).double().sum())
            self._gradients[name].append(rows[self._rows(output)])
        self._batch += windows
        self._seen.clear()

    def layers(self) -> dict[str, LayerEvidence]:
        """Layer → what was found; layers that no token reached are left out. Asked for once."""
        sites = list(self._collectors)
        statistics = {name: self._collectors.pop(name).result() for name in sites}
        parts = {name: self._inputs.pop(name) for name in sites}
        inputs = {name: torch.cat(found) for name, found in parts.items() if found}
        result: dict[str, LayerEvidence] = {}
        for name, (_, site) in self._layers.items():
            if site not in inputs or not statistics[site].tokens:
                continue
            gradients = torch.cat(self._gradients.pop(name))
            sampled = gradients.square().sum(1) * inputs[site].square().sum(1)
            mean = float(sampled.double().mean())
            scale = self._weighted[name] / (mean * self._predicted) if mean > 0 else 0.0
            result[name] = LayerEvidence(statistics[site], inputs[site], gradients, scale)
        return result

    def _noting(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._seen.append((name, output, args[0].detach()))

        return hook

    def _rows(self, value: Tensor) -> Tensor:
        """Rows of the flattened value that belong to the sample."""
        if value.dim() == 3 and value.shape[1] == self._tokens:
            windows = value.shape[0]
            chosen = self._positions[self._batch : self._batch + windows]
            starts = torch.arange(windows)[:, None] * self._tokens
            return (starts + chosen).flatten().to(value.device)
        # Flattened, or some of the tokens only, as an expert of a mixture sees them.
        step = max(self._tokens // self._positions.shape[1], 1)
        return torch.arange(0, value[..., 0].numel(), step, device=value.device)
