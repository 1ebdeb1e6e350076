"""How far one model's logits are from another's."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["agreement", "kl_divergence", "relative_error"]


def kl_divergence(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(p ‖ q) at every position, in nats; p from the reference, q from the other.

    Args:
        reference_logits: (batch, tokens, vocabulary), floating point.
        logits: the same shape.

    Returns:
        float64 (batch, tokens), never negative; infinite where q excludes what p allows.
    """
    # A sequence at a time, for the reason given in `token_nll`.
    return torch.stack([_kl(p, q) for p, q in zip(reference_logits, logits, strict=True)])


def _kl(reference_logits: Tensor, logits: Tensor) -> Tensor:
    log_p = reference_logits.double().log_softmax(-1)
    log_q = logits.double().log_softmax(-1)
    p = log_p.exp()
    # Where p is 0 the term is 0, even if log p and log q are both −infinity. NaN stays.
    terms = torch.where(p == 0, 0.0, p * (log_p - log_q))
    # The sum of equal distributions can come out below 0 by a rounding error.
    return terms.sum(-1).clamp(min=0)


def agreement(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """Whether both rank the same token first, at every position.

    Args:
        reference_logits: (…, vocabulary).
        logits: the same shape.

    Returns:
        bool (…).
    """
    return reference_logits.argmax(-1) == logits.argmax(-1)


def relative_error(reference: Tensor, actual: Tensor) -> float:
    """‖actual − reference‖ / ‖reference‖ over all entries, in float64.

    Two zero tensors give 0, a zero reference alone gives infinity.
    """
    reference = reference.double()
    difference = float(torch.linalg.vector_norm(actual.double() - reference))
    scale = float(torch.linalg.vector_norm(reference))
    if scale == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / scale
