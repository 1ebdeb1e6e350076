"""What is collected of a layer, and the losses predicted from it, against autograd in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from asvd_q.budget.evidence import sample_positions
from asvd_q.decomposition import spectrum, truncate, whitening_scaling
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.plan import QuantSpec
from asvd_q.quantization import quantize
from tests.budget.sweeping import (
    WINDOWS,
    evidence_of,
    likeliest_labels,
    open_model,
    random_errors,
)
from tests.models.families import plain_model, save_family

ALL = WINDOWS.numel()
PREDICTED = WINDOWS.shape[0] * (WINDOWS.shape[1] - 1)


class Seen(NamedTuple):
    """Of one layer, over all tokens, float64: weight, inputs, gradients at its outputs."""

    weight: Tensor
    inputs: Tensor
    gradients: Tensor

    def loss(self, error: Tensor) -> float:
        """½ Σ (g · δy)², per predicted token."""
        d = (self.gradients * (self.inputs @ error.double().T)).sum(1)
        return float(d.square().sum() / 2 / PREDICTED)


def by_autograd(folder: Path, model: BlockwiseModel) -> dict[str, Seen]:
    plain = plain_model(folder).double().requires_grad_(True)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    refs = [ref for ref in model.skeleton.weights if ref.block is not None]

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            seen[name] = (args[0].detach(), output)

        return hook

    for ref in refs:
        plain.get_submodule(ref.module).register_forward_hook(keep(ref.name))
    logits = plain(WINDOWS, use_cache=False).logits[:, :-1]
    labels = logits.detach().argmax(-1)
    nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    found: dict[str, Seen] = {}
    for ref in refs:
        inputs, output = seen[ref.name]
        assert output.grad is not None
        weight = ref.take(plain.get_parameter(ref.tensor_name)).detach()
        found[ref.name] = Seen(weight, inputs.flatten(0, -2), output.grad.flatten(0, -2))
    return found


@pytest.fixture(params=["llama", "gpt2", "opt"])
def case(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[BlockwiseModel, dict[str, Seen]]:
    likeliest_labels(monkeypatch)
    folder = save_family(request.param, tmp_path / "model")
    model = open_model(folder)
    return model, by_autograd(folder, model)


@pytest.mark.parametrize("batch_size", [2, 7])
def test_losses_of_all_tokens_are_their_definition(
    case: tuple[BlockwiseModel, dict[str, Seen]], batch_size: int, tmp_path: Path
) -> None:
    model, expected = case
    evidence = evidence_of(model, tmp_path, sample=ALL, batch_size=batch_size)
    assert set(evidence) == set(expected)
    for number, (name, layer) in enumerate(expected.items()):
        found = evidence[name]
        assert found.inputs.dtype == found.gradients.dtype == torch.float32
        error = random_errors((layer.weight.shape[0], layer.weight.shape[1]), number)
        loss = found.loss(found.inputs @ error.T)
        assert loss == pytest.approx(layer.loss(error), rel=3e-4), name
        decomposed = spectrum(layer.weight, whitening_scaling(found.statistics.gram, 1e-3))
        curve = found.losses_by_rank(decomposed.left, found.inputs @ layer.weight.float().T)
        by_rank = [
            layer.loss((truncate(decomposed, rank).product() if rank else 0) - layer.weight)
            for rank in range(len(decomposed.values))
        ]
        assert curve.dtype == torch.float64
        assert curve[-1] == 0
        torch.testing.assert_close(
            curve[:-1], curve.new_tensor(by_rank), rtol=1e-3, atol=1e-5 * max(by_rank), msg=name
        )


def test_statistics_are_of_all_inputs_whatever_the_sample(
    case: tuple[BlockwiseModel, dict[str, Seen]], tmp_path: Path
) -> None:
    model, expected = case
    for name, found in evidence_of(model, tmp_path, sample=14).items():
        inputs = expected[name].inputs
        assert found.statistics.tokens == ALL
        gram = inputs.T @ inputs / len(inputs)
        error = (found.statistics.gram - gram).abs().max() / gram.abs().max()
        assert float(error) < 1e-5
        torch.testing.assert_close(
            found.statistics.abs_max, inputs.abs().amax(0), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("sample", [1, 30, 42])
def test_a_sample_has_each_inputs_own_gradient(
    case: tuple[BlockwiseModel, dict[str, Seen]], sample: int, tmp_path: Path
) -> None:
    model, expected = case
    windows, tokens = WINDOWS.shape
    chosen = sample_positions(windows, tokens, sample, 0)
    places = (chosen + torch.arange(windows)[:, None] * tokens).flatten()
    flattened = torch.arange(0, ALL, tokens // chosen.shape[1])  # in OPT's MLP
    for name, found in evidence_of(model, tmp_path, sample=sample, batch_size=3).items():
        rows = flattened if ".fc" in name else places
        mine_and_whole = zip((found.inputs, found.gradients), expected[name][1:], strict=True)
        for mine, whole in mine_and_whole:
            assert len(mine) == len(rows) >= sample
            error = (mine - whole[rows]).abs().max() / whole.abs().max()
            assert float(error) < 1e-3, name


def test_scaling_brings_a_sample_nearer_to_the_whole(
    case: tuple[BlockwiseModel, dict[str, Seen]], tmp_path: Path
) -> None:
    model, expected = case
    errors = {
        name: quantize(layer.weight, QuantSpec(bits=3, group_size=16)).dequantize() - layer.weight
        for name, layer in expected.items()
    }
    scaled, unscaled = 0.0, 0.0
    for seed in range(8):
        for name, found in evidence_of(model, tmp_path, sample=ALL // 2, seed=seed).items():
            whole = expected[name].loss(errors[name])
            loss = found.loss(found.inputs @ errors[name].float().T)
            scaled += abs(loss / whole - 1)
            unscaled += abs(loss / found.scale / whole - 1)
    assert scaled < unscaled


def test_nothing_is_scaled_where_all_tokens_are_taken(
    case: tuple[BlockwiseModel, dict[str, Seen]], tmp_path: Path
) -> None:
    model, _ = case
    for found in evidence_of(model, tmp_path, sample=ALL).values():
        tokens = len(found.inputs)
        assert tokens in (PREDICTED, ALL)  # OPT flattens windows, their last tokens included
        assert found.scale == pytest.approx(tokens / PREDICTED, rel=1e-5)


@pytest.mark.parametrize(
    ("windows", "tokens", "sample", "count"),
    [
        (5, 12, 20, 4),
        (5, 12, 21, 5),
        (5, 12, 1, 1),
        (5, 12, 55, 11),
        (5, 12, 1000, 11),
        (1, 2, 9, 1),
    ],
)
def test_positions(windows: int, tokens: int, sample: int, count: int) -> None:
    found = sample_positions(windows, tokens, sample, 3)
    assert found.shape == (windows, count)
    assert found.dtype == torch.int64
    assert torch.equal(found, sample_positions(windows, tokens, sample, 3))
    assert int(found.min()) >= 0
    assert int(found.max()) <= tokens - 2  # the last one predicts nothing
    assert bool((found.diff(dim=1) > 0).all())


def test_positions_follow_the_seed_and_lie_everywhere() -> None:
    assert not torch.equal(sample_positions(5, 64, 20, 0), sample_positions(5, 64, 20, 1))
    counts = sample_positions(2000, 11, 4000, 0).flatten().bincount(minlength=10)
    assert float((counts / 400 - 1).abs().max()) < 0.2
