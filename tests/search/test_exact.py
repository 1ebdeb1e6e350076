"""The exact sweep against the naive one: swap a weight in a plain model, run everything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asvd_q.decomposition import spectrum, truncate
from asvd_q.decomposition.choice import make_scaling
from asvd_q.errors import ModelError, NumericsError, RankError
from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.refs import Site
from asvd_q.recipe import DecomposeSection
from asvd_q.search.exact import exact_losses
from asvd_q.statistics.collectors import SiteCollector
from asvd_q.statistics.fisher import fisher_information
from tests.models.families import FAMILIES, plain_model, save_family
from tests.statistics.activations import captured_inputs

WINDOWS = torch.randint(3, 64, (5, 12), generator=torch.Generator().manual_seed(2))
"""Five windows: in batches of two the last one is smaller."""

RANKS = (3, 9, 15)


def open_model(folder: Path) -> BlockwiseModel:
    return BlockwiseModel(SourceModel.open(str(folder)))


def all_ranks(model: BlockwiseModel) -> dict[str, Sequence[int]]:
    return {ref.name: RANKS for ref in model.skeleton.weights if ref.block is not None}


def log_probabilities(plain: nn.Module) -> Tensor:
    """(windows, tokens − 1, vocabulary), float64: one forward pass of the whole model."""
    with torch.no_grad():
        return plain(WINDOWS, use_cache=False).logits[:, :-1].double().log_softmax(-1)


def naive(folder: Path, section: DecomposeSection, metric: str) -> dict[str, dict[int, float]]:
    model = open_model(folder)
    refs = [ref for ref in model.skeleton.weights if ref.block is not None]
    plain = plain_model(folder)
    fisher = fisher_information(model, WINDOWS, refs) if section.scaling == "fisher" else {}
    inputs = captured_inputs(plain, [ref.module for ref in refs], [WINDOWS])
    dense = log_probabilities(plain)
    labels = WINDOWS[:, 1:, None]
    found: dict[str, dict[int, float]] = {}
    for ref in refs:
        collector = SiteCollector(Site(ref.name, ref.block, (ref.name,), ref.shape[1]), "cpu")
        collector.add(inputs[ref.module])
        parameter = plain.get_parameter(ref.tensor_name)
        original = parameter.detach().clone()
        scaling = make_scaling(section, collector.result(), fisher.get(ref.name))
        decomposed = spectrum(ref.take(original), scaling, ref.name)
        found[ref.name] = {}
        for rank in RANKS:
            ref.take(parameter.data).copy_(truncate(decomposed, rank).product())
            changed = log_probabilities(plain)
            parameter.data.copy_(original)
            if metric == "kl":
                loss = (dense.exp() * (dense - changed)).sum(-1).mean()
            else:
                loss = (dense - changed).gather(-1, labels).mean()
            found[ref.name][rank] = float(loss)
    return found


def assert_same(
    found: dict[str, dict[int, float]], expected: dict[str, dict[int, float]], relative: float
) -> None:
    assert found.keys() == expected.keys()
    for name, losses in expected.items():
        assert list(found[name]) == list(losses)
        for rank, loss in losses.items():
            # The loss itself is of order 10, in float32: differences carry its rounding.
            assert found[name][rank] == pytest.approx(loss, rel=relative, abs=2e-7), (name, rank)


@pytest.mark.parametrize("metric", ["perplexity", "kl"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_the_naive_sweep(family: str, metric: Any, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path)
    model = open_model(folder)
    section = DecomposeSection()
    found = exact_losses(
        model,
        WINDOWS,
        all_ranks(model),
        section,
        metric=metric,
        batch_size=2,
        candidates_per_batch=2,
    )
    assert_same(found, naive(folder, section, metric), 1e-4)


@pytest.mark.parametrize("scaling", ["abs_mean", "abs_max", "rms", "fisher", "none"])
def test_every_scaling(scaling: Any, tmp_path: Path) -> None:
    folder = save_family("llama", tmp_path)
    model = open_model(folder)
    section = DecomposeSection(scaling=scaling)
    found = exact_losses(model, WINDOWS, all_ranks(model), section, batch_size=5)
    assert_same(found, naive(folder, section, "perplexity"), 1e-4)


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize(("batch_size", "together"), [(1, 1), (2, 3), (3, 5), (8, 2)])
def test_batches_and_places_do_not_matter(
    batch_size: int, together: int, where: str, tmp_path: Path
) -> None:
    model = open_model(save_family("gpt2", tmp_path / "model"))
    folder = tmp_path / "states"
    folder.mkdir()
    reference = exact_losses(model, WINDOWS, all_ranks(model), DecomposeSection(), batch_size=5)
    found = exact_losses(
        model,
        WINDOWS,
        all_ranks(model),
        DecomposeSection(),
        batch_size=batch_size,
        candidates_per_batch=together,
        folder=folder if where == "disk" else None,
    )
    assert_same(found, reference, 1e-4)


def test_goes_on_with_what_is_known(tmp_path: Path) -> None:
    model = open_model(save_family("llama", tmp_path))
    ranks = all_ranks(model)
    names = list(ranks)
    whole = exact_losses(model, WINDOWS, ranks, DecomposeSection(), batch_size=2)
    known: dict[str, dict[int, float]] = {name: dict.fromkeys(RANKS, -1.0) for name in names}
    known[names[3]] = {9: -1.0}
    del known[names[8]]
    seen: list[tuple[str, list[int]]] = []
    steps: list[tuple[int, int]] = []
    found = exact_losses(
        model,
        WINDOWS,
        ranks,
        DecomposeSection(),
        batch_size=2,
        known=known,
        on_layer=lambda name, losses: seen.append((name, list(losses))),
        progress=lambda stage, done, total: steps.append((done, total)),
    )
    assert seen == [(names[3], [3, 15]), (names[8], [3, 9, 15])]
    assert steps == [(1, 2), (2, 2)]
    assert found[names[3]] == pytest.approx(whole[names[3]] | {9: -1.0}, rel=1e-4)
    assert found[names[8]] == pytest.approx(whole[names[8]], rel=1e-4)
    assert found[names[0]] == known[names[0]]


def test_nothing_is_run_when_all_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(save_family("llama", tmp_path))
    ranks = all_ranks(model)
    known = {name: dict.fromkeys(RANKS, 0.5) for name in ranks}
    monkeypatch.setattr(model, "load_block", None)
    assert (
        exact_losses(model, WINDOWS, ranks, DecomposeSection(), batch_size=2, known=known) == known
    )


def test_blocks_are_loaded_once_per_layer_in_front_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(save_family("llama", tmp_path))
    loaded: list[int] = []
    original = model.load_block

    def spy(index: int) -> nn.Module:
        loaded.append(index)
        return original(index)

    monkeypatch.setattr(model, "load_block", spy)
    exact_losses(model, WINDOWS, all_ranks(model), DecomposeSection(), batch_size=2)
    # Twice for the dense passes, once to learn what a block returns, and 7 layers before block 1.
    assert (loaded.count(0), loaded.count(1)) == (3, 2 + 7)


def test_a_layer_that_does_not_exist(tmp_path: Path) -> None:
    model = open_model(save_family("llama", tmp_path))
    with pytest.raises(ModelError, match="lm_head"):
        exact_losses(model, WINDOWS, {"lm_head": [4]}, DecomposeSection(), batch_size=2)


@pytest.mark.parametrize("rank", [0, 17])
def test_a_rank_that_does_not_exist(rank: int, tmp_path: Path) -> None:
    model = open_model(save_family("llama", tmp_path))
    name = "model.layers.1.self_attn.k_proj"
    with pytest.raises(RankError, match=f"{name}: rank {rank} is outside 1 … 16"):
        exact_losses(model, WINDOWS, {name: [4, rank]}, DecomposeSection(), batch_size=2)


def test_a_damaged_layer_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_family("llama", tmp_path)
    name = "model.layers.1.mlp.down_proj"
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{name}.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    model = open_model(folder)
    with pytest.raises(NumericsError, match=name):
        exact_losses(model, WINDOWS, {name: [4]}, DecomposeSection(), batch_size=2)
