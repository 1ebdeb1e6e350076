"""The search's own measures, in the logits' precision, against those of evaluation in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from asvd_q.metrics import kl_divergence, token_nll
from asvd_q.search import scoring

TOKENS, VOCABULARY = 200, 512


def logits(scale: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(TOKENS, VOCABULARY, generator=generator) + 30


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 100.0])
def test_losses_are_those_of_the_metric(scale: float) -> None:
    values = logits(scale)
    ids = torch.randint(0, VOCABULARY, (TOKENS + 1,), generator=torch.Generator().manual_seed(1))
    with_last = torch.cat([values, values[:1]])[None]
    expected = token_nll(with_last, ids[None])[0]
    found = scoring._token_losses(values, ids[1:])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    assert float(found.mean()) == pytest.approx(float(expected.mean()), rel=1e-7, abs=1e-6)


@pytest.mark.parametrize("change", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_divergences_are_those_of_the_metric(scale: float, change: float) -> None:
    reference = logits(scale)
    changed = reference + change * (logits(1.0, seed=2) - 30)
    expected = kl_divergence(reference[None], changed[None])[0]
    found = scoring._divergences(changed, reference)
    assert float(found.mean()) == pytest.approx(float(expected.mean()), rel=1e-3, abs=3e-7)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def test_equal_logits_do_not_diverge() -> None:
    values = logits(10.0)
    assert float(scoring._divergences(values, values.clone()).abs().max()) == 0


def test_a_token_that_the_changed_model_excludes_is_infinitely_far() -> None:
    reference = logits(1.0)
    changed = reference.clone()
    changed[3, 7] = -torch.inf
    assert scoring._divergences(changed, reference)[3] == torch.inf


def test_tokens_that_no_model_allows_do_not_count() -> None:
    reference, changed = logits(1.0), logits(1.0) + 0.1 * (logits(1.0, seed=2) - 30)
    expected = scoring._divergences(changed[:, 1:], reference[:, 1:])
    reference[:, 0], changed[:, 0] = -torch.inf, -torch.inf
    found = scoring._divergences(changed, reference)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
