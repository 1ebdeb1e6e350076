"""The best predicted model at every budget, and plain quantization on the same axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from asvd_q.budget.choice import Choice, Offering, choose
from asvd_q.budget.sweep import LayerTried
from asvd_q.errors import RankError
from asvd_q.search.allocation import Budget, LossBound

__all__ = ["Uniform", "front", "reach", "uniform_models"]

_DEFAULT_POINTS = 21


@dataclass(frozen=True)
class Uniform:
    """A model whose layers are all quantized alike, as a yardstick.

    Attributes:
        name: method and width of its codes.
        bits_per_weight: of the layers, in the format's count.
        layer_bytes, total_bytes: in the format's count.
        loss: sum of the predicted increases, nats per token.
    """

    name: str
    bits_per_weight: float
    layer_bytes: int
    total_bytes: int
    loss: float


def reach(offering: Offering) -> tuple[float, float]:
    """The fewest and the most bits per weight that the candidates come to."""
    scale = 8 / offering.weights
    least = sum(min(one.bytes for one in forms) for forms in offering.candidates.values())
    most = sum(max(one.bytes for one in forms) for forms in offering.candidates.values())
    return least * scale, most * scale


def front(offering: Offering, budgets: Sequence[float] = ()) -> list[Choice]:
    """The choice at every budget, by falling bytes; those out of reach are left out.

    Args:
        budgets: bits per weight; by default a geometric row up to 8.5, from where the perplexity
            is predicted to double.
    """
    if not budgets:
        low, high = reach(offering)
        with suppress(RankError):  # where all models lose more than that
            low = choose(offering, LossBound(math.log(2))).bits_per_weight
        high = max(min(high, 8.5), low)
        steps = _DEFAULT_POINTS - 1
        budgets = [low * (high / low) ** (step / steps) for step in range(steps + 1)]
    found: list[Choice] = []
    for bits in sorted(budgets, reverse=True):
        # A sum of whole bytes must not miss its own limit by a rounding error.
        limit = math.floor(bits * offering.weights / 8 + 1e-6)
        try:
            choice = choose(offering, Budget("bytes", limit))
        except RankError:
            continue
        if not found or choice.layer_bytes < found[-1].layer_bytes:
            found.append(choice)
    return found


def uniform_models(tried: Mapping[str, LayerTried], offering: Offering) -> list[Uniform]:
    """Plain RTN, GPTQ and NF4 of all layers, by falling bytes.

    Layers without trials stay as they are. What some layer could not be quantized with is no
    model.
    """
    sums: dict[str, list[tuple[int, float]]] = {}
    touched = [found for found in tried.values() if found.uniform]
    for found in touched:
        for offer, loss in found.uniform:
            spec = offer.layer.quantization["weight"]
            assert spec is not None
            name = "NF4" if spec.method == "nf4" else f"{spec.method.upper()} {spec.bits}"
            sums.setdefault(name, []).append((offer.bytes, loss))
    rest = sum(
        offering.candidates[name][0].bytes for name, found in tried.items() if not found.uniform
    )
    models = [
        _uniform(
            name,
            rest + sum(size for size, _ in layers),
            math.fsum(loss for _, loss in layers),
            offering,
        )
        for name, layers in sums.items()
        if len(layers) == len(touched)
    ]
    return sorted(models, key=lambda model: (-model.layer_bytes, model.loss))


def _uniform(name: str, layer_bytes: int, loss: float, offering: Offering) -> Uniform:
    return Uniform(
        name=name,
        bits_per_weight=8 * layer_bytes / offering.weights,
        layer_bytes=layer_bytes,
        total_bytes=layer_bytes + offering.fixed_bytes,
        loss=loss,
    )
