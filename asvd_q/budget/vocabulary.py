"""Embedding and output head: what the dense model asks of them, and trials of their codes.

Rows of an embedding are looked up, so an error δ of a row is an error of the output itself, and the
loss rises by ½ mean((g · δ)²) as it does behind any layer, g being the gradient at the embedding's
output. Where the head has the same matrix, its own term comes on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asvd_q.budget.evidence import BlockEvidence, LayerEvidence, sample_positions
from asvd_q.compression.matrices import stored_matrix
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.hidden import HiddenStates
from asvd_q.models.refs import Site, WeightRef
from asvd_q.plan import FloatType, LayerPlan
from asvd_q.quantization import TORCH_TYPES

__all__ = ["EmbeddingEvidence", "VocabularyTrials", "embedding_evidence", "head_evidence"]

_MOST_GRADIENTS = 1 << 26
"""Values of gradients at logits that are kept; a large vocabulary gets a smaller sample."""


@dataclass(frozen=True)
class EmbeddingEvidence:
    """What is known of an embedding.

    Attributes:
        tokens: int64 (tokens,), the sample.
        gradients: float32 (tokens, hidden), of the summed loss at the rows that were looked up.
        scale: turns a mean over the sample into nats per predicted token.
        counts: int64 (vocabulary,), how often each row was looked up in all windows.
        energy: |g|² over all tokens, per predicted token.
    """

    tokens: Tensor
    gradients: Tensor
    scale: float
    counts: Tensor
    energy: float

    def loss(self, errors: Tensor) -> float:
        """Predicted loss increase, nats per token, of errors (vocabulary, hidden) of the rows.

        Rows that no calibration token looked up would cost nothing. They are given the share of
        other text that looks up unseen rows, which is about that of the tokens seen once (Good,
        Biometrika 40, 1953), and never less than one token's; and what lies there loses what
        their errors do under a gradient of mean energy that points anywhere:
        E[(g · δ)²] = |g|² |δ|² / hidden.
        """
        d = (errors[self.tokens] * self.gradients).sum(1)
        seen = 0.5 * self.scale * float(d.double().square().mean())
        unseen = errors[self.counts == 0]
        if not len(unseen):
            return seen
        share = max(int((self.counts == 1).sum()), 1) / int(self.counts.sum())
        squares = float(unseen.square().sum(1, dtype=torch.float64).mean())
        return (1 - share) * seen + share * 0.5 * self.energy * squares / errors.shape[1]


class VocabularyTrials:
    """Codes of an embedding, a head, or a matrix that is both."""

    def __init__(
        self,
        weight: Tensor,
        float_type: FloatType,
        *,
        embedding: EmbeddingEvidence | None = None,
        head: LayerEvidence | None = None,
    ) -> None:
        """
        Args:
            weight: (vocabulary, hidden), as the source keeps it.
            float_type: codes are of the weight rounded to it, as in the store.
            embedding, head: of what the matrix is.
        """
        self._weight = weight.float()
        self._rounded = weight.to(TORCH_TYPES[float_type]).double()
        self._float_type: FloatType = float_type
        self._embedding = embedding
        self._head = head

    def loss(self, layer: LayerPlan) -> float:
        """Predicted loss increase of codes, nats per token.

        Raises:
            ValueError, NumericsError: the codes cannot be made.
        """
        if layer.quantization["weight"] is None:
            return 0.0
        gram = None if self._head is None else self._head.statistics.gram
        stored = stored_matrix(self._rounded, layer, "weight", self._float_type, gram)
        errors = stored.dequantize(torch.float32).to(self._weight.device) - self._weight
        total = 0.0
        if self._head is not None:
            total += self._head.loss(self._head.inputs @ errors.T)
        if self._embedding is not None:
            total += self._embedding.loss(errors)
        return total


def head_evidence(
    model: BlockwiseModel,
    outside: nn.Module,
    weight: WeightRef,
    windows: Tensor,
    *,
    sample: int,
    seed: int,
) -> BlockEvidence:
    """Collects what reaches the head, and gradients at its logits: a probe for the way back.

    Args:
        weight: of the head, or of the embedding that is tied to it.
        windows: calibration tokens, int64 (samples, tokens).
        sample: tokens to keep, at most.
    """
    name = weight.tied or weight.name
    site = Site(name, None, (name,), weight.shape[1])
    most = max(min(sample, _MOST_GRADIENTS // weight.shape[0]), 1)
    positions = sample_positions(len(windows), windows.shape[1], most, seed)
    return BlockEvidence(outside, "", [site], positions, windows.shape, model.device)


def embedding_evidence(
    model: BlockwiseModel,
    outside: nn.Module,
    weight: WeightRef,
    batches: Sequence[Tensor],
    gradients: HiddenStates,
    positions: Tensor,
) -> EmbeddingEvidence:
    """What the way back has found when it is through all blocks.

    Args:
        batches: calibration tokens, int64 (windows, tokens) each.
        gradients: of the summed loss at the input of the first block, batch by batch.
        positions: see `sample_positions`.
    """
    module = outside.get_submodule(weight.module)
    assert isinstance(module, nn.Embedding)
    rows = module.weight.detach()
    seen: list[Tensor] = []

    def cut(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_(True))
        return seen[-1]

    tokens, kept = [], []
    counts = torch.zeros(weight.shape[0], dtype=torch.long)
    energy = weighted = 0.0
    done = predicted = 0
    handle = module.register_forward_hook(cut)
    try:
        for position, batch in enumerate(batches):
            seen.clear()
            with torch.enable_grad():
                entering = model.entering(outside, batch)
            [output] = seen
            upstream = gradients[position].to(entering.device)
            (found,) = torch.autograd.grad(entering, [output], upstream)
            found = found.float() * _factor(output.detach(), rows[batch.to(rows.device)])
            squares = found.double().square().sum(-1)
            sizes = rows[batch.to(rows.device)].double().square().sum(-1)
            energy += float(squares.sum())
            weighted += float((squares * sizes).sum())
            predicted += batch.shape[0] * (batch.shape[1] - 1)
            counts += torch.bincount(batch.flatten().cpu(), minlength=weight.shape[0])
            chosen = positions[done : done + len(batch)]
            done += len(batch)
            lines = torch.arange(len(batch))[:, None]
            tokens.append(batch[lines, chosen].flatten())
            kept.append(found[lines.to(found.device), chosen.to(found.device)].flatten(0, 1))
    finally:
        handle.remove()
    sample, gradient = torch.cat(tokens).to(rows.device), torch.cat(kept)
    sampled = gradient.double().square().sum(1) * rows[sample].double().square().sum(1)
    mean = float(sampled.mean())
    return EmbeddingEvidence(
        tokens=sample,
        gradients=gradient,
        scale=weighted / (mean * predicted) if mean > 0 else 0.0,
        counts=counts.to(rows.device),
        energy=energy / predicted,
    )


def _factor(output: Tensor, rows: Tensor) -> float:
    """What some models multiply the rows by when they are looked up; 1 in most."""
    if torch.equal(output, rows):
        return 1.0
    exact = rows.double()
    return float((output.double() * exact).sum() / exact.square().sum().clamp(min=1e-300))
