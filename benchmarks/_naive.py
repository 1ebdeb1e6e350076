"""The published sensitivity sweep, step by step: what this package's sweeps are measured against.

For every layer and every kept ratio: scale the weight by diag(E|x|^α), take a new randomised SVD,
put two linear layers in the layer's place, run the whole calibration text through the model, put
the layer back.

Source: ASVD, arXiv 2312.05821, section 3, and the settings that its authors published: α ½,
ratios 0.4 … 0.9, `torch.svd_lowrank` with q = rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from asvd_q.decomposition.choice import make_scaling
from asvd_q.models import SourceModel
from asvd_q.models.refs import Site, WeightRef
from asvd_q.recipe import DecomposeSection
from asvd_q.search.candidates import DEFAULT_RATIOS
from asvd_q.search.uniform import break_even_rank
from asvd_q.statistics.collectors import SiteCollector

__all__ = [
    "Truncation",
    "exact_truncation",
    "layer_scalings",
    "load_whole",
    "mean_loss",
    "mean_magnitudes",
    "naive_losses",
    "published_ranks",
    "published_truncation",
    "run_forward",
]

Truncation = Callable[[str, Tensor, int], tuple[Tensor, Tensor]]
"""Name, weight (out, in) and rank of a layer → A (out, rank), B (rank, in)."""


def load_whole(source: SourceModel) -> PreTrainedModel:
    """The model as transformers loads it, float32, all of it in memory."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def published_ranks(
    weights: Iterable[WeightRef], ratios: Sequence[float] = DEFAULT_RATIOS
) -> dict[str, list[int]]:
    """Layer → ⌊ratio · out · in / (out + in)⌋ for every ratio, ascending, at least 1."""
    return {
        weight.name: sorted(
            {max(int(ratio * break_even_rank(weight.shape)), 1) for ratio in ratios}
        )
        for weight in weights
    }


@torch.inference_mode()
def run_forward(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """One forward pass of the whole model, to the logits, over batches (windows, tokens)."""
    for batch in batches:
        model(input_ids=batch, use_cache=False)


@torch.inference_mode()
def mean_loss(model: nn.Module, batches: Iterable[Tensor]) -> float:
    """Mean next-token loss inside the windows, nats; float32 per token, summed in float64."""
    total, count = 0.0, 0
    for batch in batches:
        logits = model(input_ids=batch, use_cache=False).logits
        # A window at a time stays in cache.
        for scores, ids in zip(logits, batch, strict=True):
            losses = nn.functional.cross_entropy(scores[:-1].float(), ids[1:], reduction="none")
            total += float(losses.double().sum())
            count += losses.numel()
    return total / count


def mean_magnitudes(
    model: nn.Module, weights: Iterable[WeightRef], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Layer → E|x_j| (in,) over all tokens of the batches, float64."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, inputs: Tensor) -> None:
        magnitudes = inputs.flatten(0, -2).abs()
        sums[name] = sums.get(name, 0.0) + magnitudes.sum(0, dtype=torch.float64)
        counts[name] = counts.get(name, 0) + len(magnitudes)

    with _inputs_of(model, weights, add):
        run_forward(model, batches)
    return {name: total / counts[name] for name, total in sums.items()}


def layer_scalings(
    model: nn.Module,
    weights: Sequence[WeightRef],
    batches: Iterable[Tensor],
    section: DecomposeSection,
) -> dict[str, Tensor | None]:
    """Layer → S of the recipe's scaling (not Fisher's), (in,) or (in, in); None is the identity."""
    collectors = {
        weight.name: SiteCollector(
            Site(weight.name, weight.block, (weight.module,), weight.shape[1]), "cpu"
        )
        for weight in weights
    }
    with _inputs_of(model, weights, lambda name, inputs: collectors[name].add(inputs)):
        run_forward(model, batches)
    return {
        name: make_scaling(section, collector.result(), None).matrix
        for name, collector in collectors.items()
    }


def published_truncation(magnitudes: Mapping[str, Tensor], alpha: float = 0.5) -> Truncation:
    """A randomised SVD of W S without oversampling, S = diag(E|x|^α), √Σ in both factors.

    Args:
        magnitudes: layer → E|x_j| (in,).
    """

    def truncate(name: str, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        scale = (magnitudes[name] ** alpha + 1e-6).to(weight.dtype)
        U, S, V = torch.svd_lowrank(weight * scale, q=rank)
        return U * S.sqrt(), (V / scale[:, None]).T * S.sqrt()[:, None]

    return truncate


def exact_truncation(scalings: Mapping[str, Tensor | None]) -> Truncation:
    """The same with LAPACK's SVD of W S in float64, for any S.

    Args:
        scalings: layer → S, (in,) or lower triangular (in, in); None is the identity.
    """

    def truncate(name: str, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        scaling = scalings[name]
        S = torch.eye(weight.shape[1], dtype=torch.float64) if scaling is None else scaling
        S = S.diag() if S.ndim == 1 else S
        U, values, Vh = torch.linalg.svd(weight.double() @ S, full_matrices=False)
        root = values[:rank].sqrt()
        B = torch.linalg.solve_triangular(S, root[:, None] * Vh[:rank], upper=False, left=False)
        return U[:, :rank] * root, B

    return truncate


def naive_losses(
    model: nn.Module,
    weights: Iterable[WeightRef],
    ranks: Mapping[str, Sequence[int]],
    truncation: Truncation,
    batches: Sequence[Tensor],
) -> dict[str, dict[int, float]]:
    """Layer → rank → mean next-token loss of the model with that layer truncated.

    Args:
        model: whole; changed on the way, and as before at the end.
        truncation: done anew for every rank.
        batches: int64 (windows, tokens) each; all of them are run for every candidate.
    """
    found: dict[str, dict[int, float]] = {}
    for weight in weights:
        layer = model.get_submodule(weight.module)
        dense = weight.take(model.get_parameter(weight.tensor_name)).detach()
        bias = cast(nn.Parameter | None, layer.bias)
        found[weight.name] = {}
        for rank in ranks[weight.name]:
            factors = _two_layers(*truncation(weight.name, dense, rank), bias)
            model.set_submodule(weight.module, factors)
            found[weight.name][rank] = mean_loss(model, batches)
        model.set_submodule(weight.module, layer)
    return found


def _two_layers(A: Tensor, B: Tensor, bias: nn.Parameter | None) -> nn.Sequential:
    first, second = _linear(B), _linear(A)
    if bias is not None:
        second.bias = bias
    return nn.Sequential(first, second)


def _linear(weight: Tensor) -> nn.Linear:
    out_features, in_features = weight.shape
    layer = nn.Linear(in_features, out_features, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.float().contiguous(), requires_grad=False)
    return layer


@contextmanager
def _inputs_of(
    model: nn.Module, weights: Iterable[WeightRef], use: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Whatever enters the layers inside the context is handed on, with the layer's name."""

    def hook_for(name: str) -> Any:
        return lambda module, args: use(name, args[0])

    handles = [
        model.get_submodule(weight.module).register_forward_pre_hook(hook_for(weight.name))
        for weight in weights
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
