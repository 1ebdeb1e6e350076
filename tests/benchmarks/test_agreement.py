"""How agreement between sweeps is measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks._agreement import compare_losses, rank_agreement, spearman


@pytest.mark.parametrize("digits", [12, 1, 0], ids=["distinct", "few-ties", "many-ties"])
def test_spearman_is_scipys(digits: int) -> None:
    generator = np.random.default_rng(0)
    one = generator.standard_cauchy(60).round(digits)
    two = (one + generator.normal(size=60)).round(digits)
    assert spearman(list(one), list(two)) == pytest.approx(spearmanr(one, two).statistic)
    assert spearman(list(one), list(np.exp(one / 1000))) == pytest.approx(1)
    assert spearman(list(one), list(-one)) == pytest.approx(-1)


def test_rank_agreement_pairs_candidates_by_name_and_rank() -> None:
    one = {"a": {1: 3.0, 2: 2.0}, "b": {1: 1.0}}
    two = {"b": {1: 0.1, 9: 5.0}, "a": {2: 0.2, 1: 0.3}}
    assert rank_agreement(one, two) == pytest.approx(1)


def test_largest_differences() -> None:
    increases = {"a": {1: 0.5, 2: 0.25}, "b": {1: 0.125}}
    found = compare_losses(increases, {"a": {1: 2.5, 2: 2.5}}, 2.0)
    assert (found.candidates, found.absolute) == (2, 0.25)
    assert (found.loss, found.increase) == (0.1, 0.5)


def test_no_difference_and_no_increase() -> None:
    same = compare_losses({"a": {1: 0.0}}, {"a": {1: 2.0}}, 2.0)
    assert (same.loss, same.increase) == (0, 0)
    assert compare_losses({"a": {1: 0.5}}, {"a": {1: 2.0}}, 2.0).increase == math.inf
