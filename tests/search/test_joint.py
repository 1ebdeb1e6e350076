"""Allocations measured jointly against weights swapped in a plain model, run as a whole."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asvd_q.decomposition import Spectrum, spectrum, truncate
from asvd_q.decomposition.choice import make_scaling
from asvd_q.errors import ModelError, NumericsError, RankError
from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.refs import Site
from asvd_q.recipe import DecomposeSection
from asvd_q.search.exact import exact_losses
from asvd_q.search.joint import measure_jointly
from asvd_q.statistics.collectors import SiteCollector
from asvd_q.statistics.fisher import fisher_information
from tests.models.families import FAMILIES, plain_model, save_family
from tests.statistics.activations import captured_inputs
from tests.support import tiny_llama

WINDOWS = torch.randint(3, 64, (5, 12), generator=torch.Generator().manual_seed(2))
"""Five windows: in batches of two the last one is smaller."""


def joint_losses(*args: Any, **options: Any) -> list[float]:
    """Loss increase of every choice."""
    return list(measure_jointly(*args, **options).increases)


def open_model(folder: Path) -> BlockwiseModel:
    return BlockwiseModel(SourceModel.open(str(folder)))


def choices_for(model: BlockwiseModel) -> list[dict[str, int]]:
    """All layers alike, every second one, ranks that differ, nothing, and one layer alone."""
    names = [ref.name for ref in model.skeleton.weights if ref.block is not None]
    return [
        dict.fromkeys(names, 12),
        dict.fromkeys(names[::2], 5),
        {name: 4 + index % 11 for index, name in enumerate(names)},
        {},
        {names[-1]: 3},
    ]


def spectra_of(folder: Path, plain: nn.Module, section: DecomposeSection) -> dict[str, Spectrum]:
    """Of the dense model, from activations captured in one pass of the whole."""
    model = open_model(folder)
    refs = [ref for ref in model.skeleton.weights if ref.block is not None]
    fisher = fisher_information(model, WINDOWS, refs) if section.scaling == "fisher" else {}
    inputs = captured_inputs(plain, [ref.module for ref in refs], [WINDOWS])
    found = {}
    for ref in refs:
        collector = SiteCollector(Site(ref.name, ref.block, (ref.name,), ref.shape[1]), "cpu")
        collector.add(inputs[ref.module])
        scaling = make_scaling(section, collector.result(), fisher.get(ref.name))
        weight = ref.take(plain.get_parameter(ref.tensor_name)).clone()
        found[ref.name] = spectrum(weight, scaling, ref.name)
    return found


def log_probabilities(plain: nn.Module) -> Tensor:
    """(windows, tokens − 1, vocabulary), float64: one forward pass of the whole model."""
    with torch.no_grad():
        return plain(WINDOWS, use_cache=False).logits[:, :-1].double().log_softmax(-1)


def naive(folder: Path, choice: Mapping[str, int], section: DecomposeSection, metric: str) -> float:
    plain = plain_model(folder)
    dense, spectra = log_probabilities(plain), spectra_of(folder, plain, section)
    for ref in open_model(folder).skeleton.weights:
        if ref.name in choice:
            product = truncate(spectra[ref.name], choice[ref.name]).product()
            ref.take(plain.get_parameter(ref.tensor_name).data).copy_(product)
    changed = log_probabilities(plain)
    if metric == "kl":
        return float((dense.exp() * (dense - changed)).sum(-1).mean())
    return float((dense - changed).gather(-1, WINDOWS[:, 1:, None]).mean())


@pytest.mark.parametrize("metric", ["perplexity", "kl"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_the_changed_model(family: str, metric: Any, tmp_path: Path) -> None:
    folder, section = save_family(family, tmp_path), DecomposeSection()
    model = open_model(folder)
    choices = choices_for(model)
    steps: list[tuple[int, int]] = []
    found = joint_losses(
        model,
        WINDOWS,
        choices,
        section,
        metric=metric,
        batch_size=2,
        progress=lambda stage, done, total: steps.append((done, total)),
    )
    assert found == pytest.approx(
        [naive(folder, choice, section, metric) for choice in choices], rel=1e-5, abs=1e-5
    )
    assert found[3] == 0
    assert steps == [(1, 2), (2, 2)]


@pytest.mark.parametrize("bias", [False, True])
def test_a_llama_with_grouped_keys_and_bias(bias: bool, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, attention_bias=bias, layers=3)
    model, section = open_model(folder), DecomposeSection()
    choices = choices_for(model)
    found = joint_losses(model, WINDOWS, choices, section, batch_size=5)
    expected = [naive(folder, choice, section, "perplexity") for choice in choices]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("scaling", ["abs_mean", "abs_max", "rms", "fisher", "none"])
def test_every_scaling(scaling: Any, tmp_path: Path) -> None:
    folder = save_family("gpt2", tmp_path)
    model, section = open_model(folder), DecomposeSection(scaling=scaling)
    choices = choices_for(model)[1:3]
    found = joint_losses(model, WINDOWS, choices, section, batch_size=3)
    expected = [naive(folder, choice, section, "perplexity") for choice in choices]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_dense_loss_is_reported(tmp_path: Path) -> None:
    folder = save_family("llama", tmp_path)
    dense = log_probabilities(plain_model(folder))
    expected = -float(dense.gather(-1, WINDOWS[:, 1:, None]).mean())
    found = measure_jointly(open_model(folder), WINDOWS, [], DecomposeSection(), batch_size=2)
    assert found.dense == pytest.approx(expected, rel=1e-6)
    assert found.increases == ()


def test_one_layer_alone_is_what_the_exact_sweep_measures(tmp_path: Path) -> None:
    model = open_model(save_family("opt", tmp_path))
    names = [ref.name for ref in model.skeleton.weights if ref.block is not None]
    exact = exact_losses(
        model, WINDOWS, {name: [7] for name in names}, DecomposeSection(), batch_size=5
    )
    found = joint_losses(
        model, WINDOWS, [{name: 7} for name in names], DecomposeSection(), batch_size=5
    )
    assert found == pytest.approx([exact[name][7] for name in names], rel=1e-4, abs=2e-6)


@pytest.mark.parametrize("scaling", ["whitening", "fisher"])
@pytest.mark.parametrize("metric", ["perplexity", "kl"])
def test_on_disk_and_in_memory_alike(metric: Any, scaling: Any, tmp_path: Path) -> None:
    model = open_model(save_family("llama", tmp_path / "model"))
    choices, section = choices_for(model), DecomposeSection(scaling=scaling)
    folder = tmp_path / "scratch"
    folder.mkdir()
    memory, disk = (
        joint_losses(model, WINDOWS, choices, section, metric=metric, batch_size=2, folder=place)
        for place in (None, folder)
    )
    assert disk == memory
    assert list(folder.rglob("*.bin"))


def test_blocks_are_loaded_once_and_left_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(save_family("gpt2", tmp_path))
    loaded: list[tuple[nn.Module, dict[str, Tensor]]] = []
    original = model.load_block

    def spy(index: int) -> nn.Module:
        block = original(index)
        loaded.append((block, {n: p.clone() for n, p in block.named_parameters()}))
        return block

    monkeypatch.setattr(model, "load_block", spy)
    joint_losses(model, WINDOWS, choices_for(model), DecomposeSection(), batch_size=2)
    assert len(loaded) == 2 + 1  # once more to learn what a block returns
    for block, before in loaded:
        after = dict(block.named_parameters())
        assert list(after) == list(before)
        assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("damage", ["rank-deficient", "outliers", "dead", "bfloat16"])
def test_hard_weights(damage: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_llama(
        tmp_path, dtype=torch.bfloat16 if damage == "bfloat16" else torch.float32, hidden=32
    )
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if damage == "rank-deficient" and name.endswith("up_proj.weight"):
            tensors[name] = tensor[:, :3] @ tensor[:3]
        elif damage == "outliers" and name.endswith("layernorm.weight"):
            tensor[5] *= 1000
        elif damage == "dead" and name.endswith("layernorm.weight"):
            tensor[::3] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, section = open_model(folder), DecomposeSection()
    choices = choices_for(model)
    found = joint_losses(model, WINDOWS, choices, section, batch_size=2)
    expected = [naive(folder, choice, section, "perplexity") for choice in choices]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_one_block_is_alive_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(tiny_llama(tmp_path, layers=5))
    made: list[tuple[int, weakref.ref[Tensor]]] = []
    current = [0]

    def spy_load(index: int) -> nn.Module:
        assert {block for block, tensor in made if tensor() is not None} == set()
        current[0] = index
        block = BlockwiseModel.load_block(model, index)
        made.extend((index, weakref.ref(parameter)) for parameter in block.parameters())
        return block

    def spy_spectrum(*args: Any) -> Spectrum:
        found = spectrum(*args)
        made.extend((current[0], weakref.ref(part)) for part in (found.weight, found.left))
        return found

    choices = choices_for(model)
    monkeypatch.setattr(model, "load_block", spy_load)
    monkeypatch.setattr("asvd_q.search.spectra.spectrum", spy_spectrum)
    joint_losses(model, WINDOWS, choices, DecomposeSection(), batch_size=2)
    assert {block for block, _ in made} == set(range(5))


def test_a_layer_that_does_not_exist(tmp_path: Path) -> None:
    model = open_model(save_family("llama", tmp_path))
    with pytest.raises(ModelError, match="lm_head"):
        joint_losses(model, WINDOWS, [{}, {"lm_head": 4}], DecomposeSection(), batch_size=2)


@pytest.mark.parametrize("rank", [0, 17])
def test_a_rank_that_does_not_exist(rank: int, tmp_path: Path) -> None:
    model = open_model(save_family("llama", tmp_path))
    name = "model.layers.1.self_attn.k_proj"
    with pytest.raises(RankError, match=f"{name}: rank {rank} is outside 1 … 16"):
        joint_losses(model, WINDOWS, [{name: rank}], DecomposeSection(), batch_size=2)


def test_a_damaged_layer_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_family("llama", tmp_path)
    name = "model.layers.1.mlp.down_proj"
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{name}.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(NumericsError, match=name):
        joint_losses(open_model(folder), WINDOWS, [{name: 4}], DecomposeSection(), batch_size=2)
