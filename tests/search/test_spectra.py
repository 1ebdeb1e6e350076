"""Singular values of W S against numpy, and the search that needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from asvd_q.models import SourceModel
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.models.refs import WeightRef
from asvd_q.preparation import prepare, read_tokens
from asvd_q.progress import silent
from asvd_q.recipe import DecomposeSection, Recipe
from asvd_q.report.search import search_summary, search_table, write_search
from asvd_q.search.allocation import Budget, allocate
from asvd_q.search.baselines import stable_rank
from asvd_q.search.candidates import Candidate, ratio_ranks
from asvd_q.search.ranks import search_ranks
from asvd_q.search.spectra import singular_values
from asvd_q.search.uniform import break_even_rank
from asvd_q.statistics.fisher import fisher_information
from tests.decomposition.reference import scaling_matrix
from tests.models.families import FAMILIES, plain_model, save_family
from tests.statistics.activations import captured_inputs
from tests.support import WREN, tiny_llama

WINDOWS = torch.randint(3, 64, (5, 12), generator=torch.Generator().manual_seed(2))


def open_model(folder: Path) -> tuple[BlockwiseModel, list[WeightRef]]:
    model = BlockwiseModel(SourceModel.open(str(folder)))
    return model, [ref for ref in model.skeleton.weights if ref.block is not None]


def by_numpy(
    folder: Path, refs: list[WeightRef], section: DecomposeSection
) -> dict[str, np.ndarray]:
    plain = plain_model(folder)
    inputs = captured_inputs(plain, [ref.module for ref in refs], [WINDOWS])
    found = {}
    for ref in refs:
        weight = ref.take(plain.get_parameter(ref.tensor_name)).double().numpy()
        x = inputs[ref.module].flatten(0, -2).double().numpy()
        if section.scaling == "whitening":
            gram = x.T @ x / len(x)
            damping = section.damping * gram.trace() / len(gram) * np.eye(len(gram))
            scale = np.linalg.cholesky(gram + damping)
        else:
            scale = scaling_matrix(section.scaling, x, section.alpha, section.damping)
        found[ref.name] = np.linalg.svd(weight @ scale, compute_uv=False)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    folder, section = save_family(family, tmp_path), DecomposeSection(damping=1e-3)
    model, refs = open_model(folder)
    steps: list[tuple[int, int]] = []
    found = singular_values(
        model,
        WINDOWS,
        refs,
        section,
        batch_size=2,
        progress=lambda stage, done, total: steps.append((done, total)),
    )
    expected = by_numpy(folder, refs, section)
    assert list(found) == list(expected)
    assert steps == [(1, 2), (2, 2)]
    for name, values in expected.items():
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5 * values[0])


@pytest.mark.parametrize("scaling", ["abs_mean", "abs_max", "rms", "none"])
def test_every_scaling(scaling: Any, tmp_path: Path) -> None:
    folder, section = save_family("llama", tmp_path), DecomposeSection(scaling=scaling)
    model, refs = open_model(folder)
    found = singular_values(model, WINDOWS, refs, section, batch_size=5)
    for name, values in by_numpy(folder, refs, section).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6 * values[0])


def test_fisher_scaling(tmp_path: Path) -> None:
    model, refs = open_model(save_family("gpt2", tmp_path))
    section = DecomposeSection(scaling="fisher")
    found = singular_values(model, WINDOWS, refs, section, batch_size=5)
    fisher = fisher_information(model, WINDOWS, refs)
    for ref in refs:
        statistic = fisher[ref.name].numpy()
        scale = (statistic + section.damping * statistic.mean()) ** section.alpha
        scale /= np.sqrt((scale**2).mean())
        weight = ref.take(model.source.tensor(ref.tensor_name)).double().numpy()
        values = np.linalg.svd(weight * scale, compute_uv=False)
        np.testing.assert_allclose(found[ref.name], values, rtol=1e-6, atol=1e-7 * values[0])


def test_what_is_not_needed_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, refs = open_model(tiny_llama(tmp_path, layers=4, dtype=torch.bfloat16))
    loaded: list[int] = []

    def spy(index: int) -> nn.Module:
        loaded.append(index)
        return BlockwiseModel.load_block(model, index)

    wanted = [ref for ref in refs if ref.block == 1 and "mlp" in ref.name]
    whole = singular_values(model, WINDOWS, refs, DecomposeSection(), batch_size=2)
    monkeypatch.setattr(model, "load_block", spy)
    found = singular_values(model, WINDOWS, wanted, DecomposeSection(), batch_size=2)
    assert loaded == [0, 1]
    assert list(found) == [ref.name for ref in wanted]
    for name, values in found.items():
        np.testing.assert_array_equal(values, whole[name])
    assert singular_values(model, WINDOWS, [], DecomposeSection(), batch_size=2) == {}


def test_on_disk_and_in_memory_alike(tmp_path: Path) -> None:
    model, refs = open_model(save_family("opt", tmp_path / "model"))
    folder = tmp_path / "scratch"
    folder.mkdir()
    memory, disk = (
        singular_values(model, WINDOWS, refs, DecomposeSection(), batch_size=2, folder=place)
        for place in (None, folder)
    )
    assert list(folder.rglob("*.bin"))
    for name, values in memory.items():
        np.testing.assert_array_equal(disk[name], values)


def test_the_search_takes_the_papers_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {
        "model": {"path": str(WREN)},
        "calibration": {"corpus": "python-docs", "samples": 2, "window": 64},
        "decompose": {"rank_multiple": 8, "include": ["*.1.*"], "scaling": "abs_mean"},
        "search": {"kept_ratio": 0.95, "sensitivity": "stable_rank", "method": "strs"},
    }
    prepared = prepare(Recipe.model_validate(fields))
    windows = read_tokens(prepared).calibration
    section = prepared.recipe.decompose
    assert windows is not None
    assert section is not None

    def run(recipe: Recipe, *, known_only: bool = False) -> Any:
        return search_ranks(
            recipe,
            prepared.model(),
            windows,
            "bfloat16",
            tmp_path,
            silent,
            known_only=known_only,
        )

    found = run(prepared.recipe)
    weights = [ref for ref in prepared.skeleton.weights if section.selects(ref.name)]
    weights = [ref for ref in weights if ref.block is not None]
    values = singular_values(prepared.model(), windows, weights, section, batch_size=4)
    dense = [ref for ref in prepared.skeleton.weights if ref.block is not None]
    total = sum(ref.shape[0] * ref.shape[1] for ref in dense)
    fixed = total - sum(ref.shape[0] * ref.shape[1] for ref in weights)
    # The published sensitivity, −√(stable rank) · ratio^0.1, raised above 0.
    roots = {name: stable_rank(some) ** 0.5 for name, some in values.items()}
    forms = {}
    for ref in weights:
        rows, columns = ref.shape
        forms[ref.name] = [Candidate(None, rows * columns, 2 * rows * columns, 0.0)] + [
            Candidate(
                rank,
                rank * (rows + columns),
                2 * rank * (rows + columns),
                1e3 - roots[ref.name] * (rank / break_even_rank(ref.shape)) ** 0.1,
            )
            for rank in reversed(ratio_ranks(ref.shape, rank_multiple=8))
        ]
    budget = Budget("parameters", 0.95 * total - fixed)
    assert found.ranks == allocate(forms, target=budget, method="strs").ranks
    assert found.verification is not None
    assert found.verification.metric == "perplexity"
    assert run(prepared.recipe, known_only=True) == found
    _check_report(found, tmp_path)

    # Other layers: the constant changes, so nothing of the first search is taken over.
    calls: list[list[str]] = []

    def spy(model: Any, tokens: Any, refs: list[WeightRef], *args: Any, **options: Any) -> Any:
        calls.append([ref.name for ref in refs])
        return {ref.name: values[ref.name] for ref in refs}

    monkeypatch.setattr("asvd_q.search.sensitivities.singular_values", spy)
    fewer = {**fields, "decompose": {**fields["decompose"], "exclude": ["k_proj"]}}
    run(Recipe.model_validate(fewer))
    assert calls == [[ref.name for ref in weights if not ref.name.endswith("k_proj")]]


def _check_report(found: Any, folder: Path) -> None:
    """No number without a unit passes for a loss."""
    write_search(found, folder)
    content = json.loads((folder / "search.json").read_text())
    assert content["predicted_loss"] is None
    assert content["verification"]["predicted_loss"] is None
    assert content["verification"]["measured_loss"] == found.verification.chosen.loss
    for layer in content["layers"].values():
        assert layer["predicted_loss"] is None
        assert layer["sensitivities"]
        assert "losses" not in layer
    assert "sensitivity" in search_table(found).columns
    assert "predicted" not in search_summary(found)[0]
