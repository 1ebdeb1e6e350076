"""The published procedure against the exact sweep, and step by step against numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.refs import WeightRef
from asvd_q.recipe import DecomposeSection
from asvd_q.search.exact import exact_losses
from benchmarks._naive import (
    exact_truncation,
    layer_scalings,
    load_whole,
    mean_loss,
    mean_magnitudes,
    naive_losses,
    published_ranks,
    published_truncation,
)
from tests.models.families import save_family
from tests.statistics.activations import captured_inputs
from tests.support import tiny_llama

WINDOWS = torch.randint(3, 64, (5, 12), generator=torch.Generator().manual_seed(2))
BATCHES = torch.split(WINDOWS, 2)


def opened(folder: Path) -> tuple[BlockwiseModel, list[WeightRef]]:
    model = BlockwiseModel(SourceModel.open(str(folder)))
    return model, [weight for weight in model.skeleton.weights if weight.block is not None]


def largest_difference(
    folder: Path, section: DecomposeSection, scalings: dict[str, Tensor | None] | None = None
) -> float:
    """Between losses of the naive sweep with an exact SVD and the exact sweep's, relative."""
    model, weights = opened(folder)
    ranks = published_ranks(weights)
    whole = load_whole(model.source)
    dense = mean_loss(whole, BATCHES)
    scalings = scalings or layer_scalings(whole, weights, BATCHES, section)
    naive = naive_losses(whole, weights, ranks, exact_truncation(scalings), BATCHES)
    assert mean_loss(whole, BATCHES) == dense  # every layer is back in its place
    found = exact_losses(model, WINDOWS, ranks, section, batch_size=2)
    assert naive.keys() == found.keys()
    differences = []
    for name, losses in naive.items():
        assert list(losses) == ranks[name]
        for rank, loss in losses.items():
            # A difference of two losses of order 5 in float32.
            assert found[name][rank] == pytest.approx(loss - dense, rel=1e-4, abs=1e-6)
            differences.append(abs(dense + found[name][rank] - loss) / loss)
    return max(differences)


@pytest.mark.parametrize("scaling", ["whitening", "abs_mean", "rms", "none"])
def test_exact_truncation_gives_the_exact_sweep(scaling: Any, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, hidden=32, intermediate=48, vocabulary=64)
    assert largest_difference(folder, DecomposeSection(scaling=scaling)) < 1e-5


def test_weights_in_bfloat16(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, hidden=32, intermediate=48, vocabulary=64, dtype=torch.bfloat16)
    assert largest_difference(folder, DecomposeSection()) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_biases_and_transposed_weights(family: str, tmp_path: Path) -> None:
    assert largest_difference(save_family(family, tmp_path), DecomposeSection()) < 1e-5


def test_its_own_statistics_are_those_of_the_library(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, hidden=32, intermediate=48, vocabulary=64)
    model, weights = opened(folder)
    magnitudes = mean_magnitudes(load_whole(model.source), weights, BATCHES)
    scalings: dict[str, Tensor | None] = {name: mean**0.5 for name, mean in magnitudes.items()}
    section = DecomposeSection(scaling="abs_mean", alpha=0.5)
    assert largest_difference(folder, section, scalings) < 1e-5


def test_mean_magnitudes(tmp_path: Path) -> None:
    model, weights = opened(save_family("opt", tmp_path))
    whole = load_whole(model.source)
    inputs = captured_inputs(whole, [weight.module for weight in weights], BATCHES)
    found = mean_magnitudes(whole, weights, BATCHES)
    assert found.keys() == inputs.keys()
    for weight in weights:
        expected = np.abs(inputs[weight.module].numpy()).mean(0)
        np.testing.assert_allclose(found[weight.name].numpy(), expected, rtol=1e-6)


def test_mean_loss_is_that_of_transformers(tmp_path: Path) -> None:
    whole = load_whole(opened(save_family("llama", tmp_path))[0].source)
    expected = whole(WINDOWS, labels=WINDOWS).loss
    assert mean_loss(whole, BATCHES) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_published_truncation_finds_a_low_rank_weight(shape: tuple[int, int]) -> None:
    """Where nothing has to be cut off, a randomised SVD is exact, and S cancels."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape[0], 6, generator=generator) @ torch.randn(
        6, shape[1], generator=generator
    )
    magnitudes = torch.rand(shape[1], generator=generator, dtype=torch.float64) + 0.01
    magnitudes[3] *= 1000
    A, B = published_truncation({"layer": magnitudes})("layer", weight, 6)
    assert (A.shape, B.shape) == ((shape[0], 6), (6, shape[1]))
    torch.testing.assert_close(A @ B, weight, rtol=1e-3, atol=1e-3)
    # √Σ went into both.
    torch.testing.assert_close(A.norm(dim=0), (B * magnitudes.float().sqrt()).norm(dim=1))


@pytest.mark.parametrize("kind", ["none", "diagonal", "triangular"])
def test_exact_truncation_minimises_the_scaled_error(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(20, 28, generator=generator)
    lower = torch.randn(28, 28, generator=generator).tril().double()
    lower.diagonal().abs_().add_(1)
    scalings = {"none": None, "diagonal": lower.diagonal(), "triangular": lower}
    matrix = {"none": torch.eye(28).double(), "diagonal": lower.diagonal().diag()}.get(kind, lower)
    A, B = exact_truncation({"layer": scalings[kind]})("layer", weight, 5)
    error = np.linalg.norm((weight.double() - A @ B).numpy() @ matrix.numpy())
    values = np.linalg.svd(weight.double().numpy() @ matrix.numpy(), compute_uv=False)
    assert error == pytest.approx(np.sqrt(np.square(values[5:]).sum()), rel=1e-9)


def test_published_ranks() -> None:
    weights = [WeightRef("wide", "wide", (768, 256), 0), WeightRef("tiny", "tiny", (2, 2), 0)]
    found = published_ranks(weights, (0.4, 0.5, 0.9))
    assert found == {"wide": [76, 96, 172], "tiny": [1]}
