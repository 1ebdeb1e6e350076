"""Predicted losses against their definition, by autograd through a plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asvd_q.decomposition import spectrum, truncate, whitening_scaling
from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.refs import WeightRef
from asvd_q.recipe import CorpusSection, DecomposeSection
from asvd_q.search.exact import exact_losses
from asvd_q.search.fast import fast_losses
from asvd_q.statistics import labels as labels_module
from asvd_q.statistics.corpora import load_corpus
from asvd_q.statistics.sampling import draw_tokens
from asvd_q.statistics.windows import calibration_windows
from tests.models.families import FAMILIES, plain_model, save_family
from tests.support import WREN

WINDOWS = torch.randint(3, 64, (5, 12), generator=torch.Generator().manual_seed(2))
SECTION = DecomposeSection(damping=1e-3)


def open_model(folder: Path) -> tuple[BlockwiseModel, list[WeightRef]]:
    model = BlockwiseModel(SourceModel.open(str(folder)))
    return model, [ref for ref in model.skeleton.weights if ref.block is not None]


def by_autograd(
    folder: Path, refs: list[WeightRef], labels: Tensor, *, first_order: bool = True
) -> dict[str, Tensor]:
    """mean(d) + ½ mean(d²), token by token and rank by rank, d = g · (Ŵ_r − W) x."""
    plain = plain_model(folder).double().requires_grad_(True)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            seen[name] = (args[0].detach(), output)

        return hook

    for ref in refs:
        plain.get_submodule(ref.module).register_forward_hook(keep(ref.name))
    logits = plain(WINDOWS, use_cache=False).logits[:, :-1]
    nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    found: dict[str, Tensor] = {}
    for ref in refs:
        x, y = seen[ref.name]
        assert y.grad is not None
        x, g = x.flatten(0, -2), y.grad.flatten(0, -2)  # OPT flattens before its MLP
        weight = ref.take(plain.get_parameter(ref.tensor_name)).detach()
        decomposed = spectrum(weight, whitening_scaling(x.T @ x / len(x), SECTION.damping))
        curve = []
        for rank in range(min(ref.shape) + 1):
            product = truncate(decomposed, rank).product() if rank else torch.zeros_like(weight)
            d = (g * (x @ (product - weight).T)).sum(1)
            curve.append((d.sum() * first_order + d.square().sum() / 2) / labels.numel())
        found[ref.name] = torch.stack(curve)
    return found


@pytest.mark.parametrize("batch_size", [2, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_prediction_is_its_definition(family: str, batch_size: int, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path)
    model, refs = open_model(folder)
    steps: list[tuple[int, int]] = []
    found = fast_losses(
        model,
        WINDOWS,
        refs,
        SECTION,
        batch_size=batch_size,
        progress=lambda stage, done, total: steps.append((done, total)),
    )
    expected = by_autograd(folder, refs, WINDOWS[:, 1:])
    assert list(found) == list(expected)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for name, curve in expected.items():
        assert found[name].dtype == torch.float64
        assert found[name].shape == curve.shape
        assert found[name][-1] == 0
        error = (found[name] - curve).abs().max() / curve.abs().max()
        assert float(error) < 3e-4, name  # products of the statistics are in float32


def test_sampled_labels_leave_the_first_order_term_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_family("gpt2", tmp_path)
    model, refs = open_model(folder)
    monkeypatch.setattr(labels_module, "draw_tokens", lambda logits, numbers: logits.argmax(-1))
    with torch.no_grad():
        labels = plain_model(folder)(WINDOWS, use_cache=False).logits[:, :-1].argmax(-1)
    found = fast_losses(model, WINDOWS, refs, SECTION, labels="sampled", batch_size=2)
    for name, curve in by_autograd(folder, refs, labels, first_order=False).items():
        error = (found[name] - curve).abs().max() / curve.abs().max()
        assert float(error) < 3e-4, name  # products of the statistics are in float32


@pytest.mark.parametrize("scaling", ["whitening", "abs_mean", "fisher", "none"])
def test_on_disk_and_in_memory_alike(scaling: Any, tmp_path: Path) -> None:
    model, refs = open_model(save_family("gpt2", tmp_path / "model"))
    section = DecomposeSection(scaling=scaling)
    folder = tmp_path / "scratch"
    folder.mkdir()
    memory = fast_losses(model, WINDOWS, refs, section, batch_size=2)
    disk = fast_losses(model, WINDOWS, refs, section, batch_size=2, folder=folder)
    assert all(torch.equal(disk[name], curve) for name, curve in memory.items())
    assert not list(folder.glob("*.safetensors"))


def test_tokens_are_chunked_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, refs = open_model(save_family("opt", tmp_path))
    whole = fast_losses(model, WINDOWS, refs, SECTION, batch_size=5)
    monkeypatch.setattr("asvd_q.search.fast._CHUNK", 7 * 32)
    for name, curve in fast_losses(model, WINDOWS, refs, SECTION, batch_size=5).items():
        torch.testing.assert_close(curve, whole[name], rtol=1e-4, atol=1e-5)


def test_sampled_labels_follow_the_seed_and_the_model(tmp_path: Path) -> None:
    model, refs = open_model(save_family("llama", tmp_path))

    def sampled(seed: int, batch_size: int = 5) -> Tensor:
        options = {"labels": "sampled", "seed": seed, "batch_size": batch_size}
        found = fast_losses(model, WINDOWS, refs[:1], SECTION, **options)  # type: ignore[arg-type]
        return found[refs[0].name]

    assert torch.equal(sampled(1), sampled(1))
    torch.testing.assert_close(sampled(1, 2), sampled(1), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(sampled(1), sampled(2))
    corpus = fast_losses(model, WINDOWS, refs[:1], SECTION, batch_size=5)[refs[0].name]
    assert not torch.allclose(sampled(1), corpus)


def test_sampled_labels_have_the_models_distribution() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -40.0, 1.5]).repeat(20_000, 1)
    numbers = torch.rand(len(logits), generator=torch.Generator().manual_seed(3))
    drawn = draw_tokens(logits, numbers)
    share = drawn.bincount(minlength=5) / len(drawn)
    torch.testing.assert_close(share, logits[0].softmax(-1), rtol=0, atol=0.01)
    assert share[3] == 0


def ranks_of(values: Tensor) -> Tensor:
    return values.argsort().argsort().double()


def spearman(one: list[float], two: list[float]) -> float:
    pair = torch.stack([ranks_of(torch.tensor(one)), ranks_of(torch.tensor(two))])
    return float(torch.corrcoef(pair)[0, 1])


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "least"), [("corpus", 0.9), ("sampled", 0.98)])
def test_prediction_orders_candidates_as_the_exact_sweep_does(labels: Any, least: float) -> None:
    model, refs = open_model(WREN)
    corpus = load_corpus(CorpusSection(source="python-source"))
    windows = calibration_windows(
        [(corpus, 1.0)], model.source.tokenizer, samples=8, window=256, seed=0
    )
    chosen = [ref for ref in refs if ref.block in (0, 3)]
    ranks = {ref.name: [min(ref.shape) // 4, min(ref.shape) // 2] for ref in chosen}
    exact = exact_losses(
        model,
        windows,
        ranks,
        DecomposeSection(),
        metric="perplexity" if labels == "corpus" else "kl",
        batch_size=4,
    )
    fast = fast_losses(model, windows, chosen, DecomposeSection(), labels=labels, batch_size=4)
    pairs = [
        (loss, float(fast[name][rank])) for name in ranks for rank, loss in exact[name].items()
    ]
    assert spearman([one for one, _ in pairs], [two for _, two in pairs]) > least
