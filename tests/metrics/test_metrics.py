"""Metrics against scipy in float64, on logits that are hard on naive formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor

from asvd_q.errors import NumericsError
from asvd_q.metrics import (
    PerplexityMeter,
    agreement,
    kl_divergence,
    relative_error,
    token_nll,
)


def logits(scale: float, shift: float = 0.0, seed: int = 0, vocabulary: int = 50) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 7, vocabulary, generator=generator) * scale + shift


def ids() -> Tensor:
    return torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(9))


HARD = [(1.0, 0.0), (1e-4, 0.0), (1e4, 0.0), (1.0, 1e6), (30.0, -1e5), (1e30, 0.0)]


@pytest.mark.parametrize(("scale", "shift"), HARD)
def test_token_nll(scale: float, shift: float) -> None:
    values, tokens = logits(scale, shift), ids()
    found = token_nll(values, tokens)
    log_p = log_softmax(values.double().numpy()[:, :-1], axis=-1)
    expected = -np.take_along_axis(log_p, tokens[:, 1:, None].numpy(), -1)[..., 0]
    assert found.dtype == torch.float64
    assert found.shape == (3, 6)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-9)


def test_token_nll_of_half_precision_and_excluded_tokens() -> None:
    values = logits(5.0).to(torch.bfloat16)
    assert torch.equal(token_nll(values, ids()), token_nll(values.float(), ids()))
    values = torch.zeros(1, 2, 4)
    values[0, 0, 3] = -math.inf
    assert token_nll(values, torch.tensor([[0, 1]])).item() == pytest.approx(math.log(3))
    assert token_nll(values, torch.tensor([[0, 3]])).item() == math.inf


def test_perplexity_of_a_uniform_model_is_the_vocabulary() -> None:
    meter = PerplexityMeter()
    for _ in range(3):
        meter.update(token_nll(torch.zeros(2, 5, 8192), torch.zeros(2, 5, dtype=torch.int64)))
    assert meter.tokens == 3 * 2 * 4
    assert meter.perplexity == pytest.approx(8192, rel=1e-12)


def test_perplexity_does_not_depend_on_the_batches() -> None:
    nll = token_nll(logits(3.0), ids())
    whole, parts = PerplexityMeter(), PerplexityMeter()
    whole.update(nll)
    for row in nll:
        parts.update(row)
    assert parts.perplexity == pytest.approx(math.exp(float(nll.mean())), rel=1e-12)
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-12)


def test_perplexity_out_of_range() -> None:
    meter = PerplexityMeter()
    with pytest.raises(ValueError, match="no tokens"):
        _ = meter.perplexity
    meter.update(torch.tensor([1e4]))
    assert meter.perplexity == math.inf
    with pytest.raises(NumericsError, match="NaN"):
        meter.update(torch.tensor([1.0, math.nan]))
    assert meter.tokens == 1


@pytest.mark.parametrize(("scale", "shift"), HARD)
def test_kl_divergence(scale: float, shift: float) -> None:
    reference, other = logits(scale, shift), logits(scale, shift, seed=1)
    found = kl_divergence(reference, other)
    assert found.shape == (3, 7)
    assert found.dtype == torch.float64
    log_p = log_softmax(reference.double().numpy(), axis=-1)
    log_q = log_softmax(other.double().numpy(), axis=-1)
    expected = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)
    if scale <= 1 and shift == 0:
        p, q = softmax(reference.double().numpy(), -1), softmax(other.double().numpy(), -1)
        np.testing.assert_allclose(found.numpy(), rel_entr(p, q).sum(-1), rtol=1e-6, atol=1e-15)


def test_kl_divergence_of_equal_and_of_excluding_distributions() -> None:
    values = logits(10.0)
    assert torch.equal(kl_divergence(values, values), torch.zeros(3, 7, dtype=torch.float64))
    assert float(kl_divergence(values, values + 3).max()) < 1e-6
    p, q = torch.zeros(1, 1, 3), torch.zeros(1, 1, 3)
    p[..., 2] = -math.inf
    assert kl_divergence(p, q).item() == pytest.approx(math.log(1.5))
    assert kl_divergence(q, p).item() == math.inf
    assert kl_divergence(p, p).item() == 0
    assert math.isnan(kl_divergence(p * math.nan, q).item())


def test_agreement() -> None:
    reference = torch.eye(4)[None]
    other = reference.clone()
    other[0, 2] = torch.tensor([9.0, 0, 1, 0])
    assert agreement(reference, other).tolist() == [[True, True, False, True]]
    assert float(agreement(reference, reference * 5 - 2).float().mean()) == 1


def test_relative_error() -> None:
    reference = logits(1e30)
    assert relative_error(reference, reference * 1.5) == pytest.approx(0.5, rel=1e-6)
    assert relative_error(reference, reference) == 0
    zero = torch.zeros(3)
    assert relative_error(zero, zero) == 0
    assert relative_error(zero, zero + 1) == math.inf
    other = logits(1.0, seed=1)
    expected = np.linalg.norm((other - logits(1.0)).double().numpy().ravel())
    expected /= np.linalg.norm(logits(1.0).double().numpy().ravel())
    assert relative_error(logits(1.0), other) == pytest.approx(expected, rel=1e-6)
