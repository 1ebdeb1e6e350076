"""Forms measured where they will stand, against whole models put together by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from asvd_q import __version__
from asvd_q.budget import hybrid
from asvd_q.budget.choice import Choice, Offering, choose
from asvd_q.budget.counting import Count
from asvd_q.budget.explicit import with_plan
from asvd_q.budget.hybrid import checked, contested, with_measured
from asvd_q.budget.offers import Offer
from asvd_q.budget.solving import budget_offering, solve_budget
from asvd_q.budget.sweep import LayerTried, TrialCache
from asvd_q.compression import Calibration, compress
from asvd_q.errors import RecipeError
from asvd_q.evaluation.runners import model_runner
from asvd_q.metrics import kl_divergence
from asvd_q.models.blockwise import BlockwiseModel
from asvd_q.recipe import Recipe
from asvd_q.search.allocation import Budget
from asvd_q.store import Store, StoreHeader
from tests.budget.given import recipe
from tests.budget.sweeping import WINDOWS, open_model
from tests.models.families import SITES, save_family

SETTINGS: dict[str, Any] = {
    "calibration": {"corpus": "python-docs", "batch_size": 3, "sequential": True},
    "decompose": {"rank_multiple": 8, "refit": True},
    "quantize": {"method": "gptq", "refit": True},
    "budget": {"bits_per_weight": 6, "bits": [3, 4, 8], "group_sizes": [16], "ranks": 2},
}
COUNT = Count("float32")


def quiet(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BlockwiseModel:
    return open_model(save_family("llama", tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def given() -> Recipe:
    return recipe(**SETTINGS)


@pytest.fixture(scope="module")
def offering(
    model: BlockwiseModel, given: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Offering:
    folder = tmp_path_factory.mktemp("trials")
    return budget_offering(given, model, WINDOWS, COUNT, folder, quiet)[1]


def at(offering: Offering, bits: float) -> Choice:
    return choose(offering, Budget("bytes", bits * offering.weights / 8))


def test_contested_are_the_forms_of_other_budgets(offering: Offering) -> None:
    choice = at(offering, 6)
    others = [
        choose(offering, Budget("bytes", int(share * choice.layer_bytes))).allocation.chosen
        for share in (0.8, 0.9, 1.1, 1.25)
    ]
    found = contested(offering, choice)
    assert found
    for name, chosen in choice.allocation.chosen.items():
        different = [other[name] for other in others if other[name] != chosen]
        assert (name in found) == bool(different)
        if different:
            assert found[name][0] == chosen
            assert all(form in found[name] for form in different)
            assert len(found[name]) == len({form.layer.model_dump_json() for form in found[name]})  # type: ignore[union-attr]


def measured(offering: Offering, name: str, losses: list[float]) -> dict[str, LayerTried]:
    """The first forms of a layer, measured."""
    forms = offering.candidates[name]
    return {
        name: LayerTried(
            [
                (Offer(form.layer, form.bytes), loss)
                for form, loss in zip(forms, losses, strict=False)
                if form.layer is not None
            ]
        )
    }


def test_differences_within_a_layer_are_those_measured(offering: Offering) -> None:
    name = next(iter(offering.candidates))
    forms = offering.candidates[name]
    losses = [1.5 * form.loss - 3.0 for form in forms[:4]]  # an offset that says nothing
    found = with_measured(offering, measured(offering, name, losses))
    new = [form.loss for form in found.candidates[name]]
    assert min(new) >= 0
    for index in range(1, len(forms)):  # the unmeasured ones scaled alike
        expected = 1.5 * (forms[index].loss - forms[0].loss)
        assert new[index] - new[0] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    for other, candidates in offering.candidates.items():
        if other != name:
            assert found.candidates[other] == candidates


@pytest.mark.parametrize(("slope", "expected"), [(50.0, 2.0), (-4.0, 0.5)])
def test_scale_of_what_was_not_measured_is_bounded(
    offering: Offering, slope: float, expected: float
) -> None:
    name = next(iter(offering.candidates))
    forms = offering.candidates[name]
    losses = [slope * form.loss for form in forms[:3]]
    found = with_measured(offering, measured(offering, name, losses)).candidates[name]
    steps = found[-1].loss - found[-2].loss, forms[-1].loss - forms[-2].loss
    assert steps[0] == pytest.approx(expected * steps[1])


def test_measurements_are_those_of_whole_models(
    model: BlockwiseModel, given: Recipe, offering: Offering, tmp_path: Path
) -> None:
    choice = at(offering, 6)
    assert checked(given, model, WINDOWS, offering, choice, tmp_path, "key") is not None
    assert not (tmp_path / "hybrid").exists()
    found = {name: one.tried for path in tmp_path.iterdir() for name, one in load(path).items()}

    explicit = with_plan(given, choice.plan)
    header = StoreHeader(
        key="k", asvd_q=__version__, source=model.source.identity, plan=choice.plan
    )
    store = Store.create(tmp_path / "store", header, model.source)
    compress(
        model,
        store,
        section=explicit.decompose,
        quantization=explicit.quantize,
        seed=explicit.seed,
        calibration=Calibration(WINDOWS, 3, True),
        progress=quiet,
    )
    dense = logits(model, set(), store)
    behind: set[str] = set()
    checks = 0
    for block in range(len(model)):
        for site in SITES["llama"]:
            names = [f"{model.skeleton.block_name(block)}.{name}" for name in site]
            base = divergence(dense, logits(model, behind, store))
            for name in names:
                if name in found:
                    offer, loss = found[name][0]  # the chosen form, which the store holds
                    assert offer.layer.quantization == choice.plan.layer(name).quantization
                    whole = divergence(dense, logits(model, behind | {name}, store))
                    assert loss == pytest.approx(whole - base, rel=1e-3, abs=2e-6)
                    checks += 1
            behind |= set(names)
    assert checks == len(found) > 3


def load(folder: Path) -> dict[str, LayerTried]:
    """Whatever a folder of trials holds, under the key that it was written with."""
    import json

    key = json.loads(next(folder.glob("*.json")).read_text())["key"]
    return TrialCache(folder.parent, key).load()


def logits(model: BlockwiseModel, names: set[str], store: Store) -> torch.Tensor:
    """Of the model with some layers as they are stored."""
    runner = model_runner(
        model.source, lambda name: store.replaced(name) if name in names else None
    )
    return torch.cat(list(runner.score([WINDOWS])))[:, :-1]


def divergence(dense: torch.Tensor, other: torch.Tensor) -> float:
    return float(kl_divergence(dense, other).double().mean())


def test_nothing_is_measured_twice_or_where_nothing_may_run(
    model: BlockwiseModel,
    given: Recipe,
    offering: Offering,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choice = at(offering, 6)
    place = (given, model, WINDOWS, offering, choice, tmp_path, "key")
    assert checked(*place, known_only=True) is None
    first = checked(*place)
    monkeypatch.setattr(hybrid, "compress", None)
    assert checked(*place) == first == checked(*place, known_only=True)
    with pytest.raises(TypeError):  # another key: it would have to be compressed again
        checked(*place[:-1], "another")


def test_a_budget_is_met_with_measured_forms(
    model: BlockwiseModel, given: Recipe, tmp_path: Path
) -> None:
    assert given.budget is not None
    wanted = given.model_copy(update={"budget": given.budget.model_copy(update={"hybrid": True})})
    with pytest.raises(RecipeError, match="asvd-q search"):
        solve_budget(wanted, model, WINDOWS, COUNT, tmp_path, quiet, known_only=True)
    result = solve_budget(wanted, model, WINDOWS, COUNT, tmp_path, quiet)
    plain = solve_budget(given, model, WINDOWS, COUNT, tmp_path, quiet)
    assert 5.5 < result.choice.bits_per_weight <= 6
    assert result.offering.candidates != plain.offering.candidates
    again = solve_budget(wanted, model, WINDOWS, COUNT, tmp_path, quiet, known_only=True)
    assert again.choice == result.choice


def test_another_compression_is_measured_anew(
    model: BlockwiseModel, given: Recipe, offering: Offering, tmp_path: Path
) -> None:
    choice = at(offering, 6)
    checked(given, model, WINDOWS, offering, choice, tmp_path, "key")
    assert given.quantize is not None
    assert given.calibration is not None
    for changes in (
        {"quantize": given.quantize.model_copy(update={"refit": False})},
        {"calibration": given.calibration.model_copy(update={"batch_size": 1})},
    ):
        other = given.model_copy(update=changes)
        found = checked(other, model, WINDOWS, offering, choice, tmp_path, "key", known_only=True)
        assert found is None


@pytest.mark.parametrize("sequential", [False, True])
def test_without_refit_statistics_are_those_of_the_loop(
    model: BlockwiseModel, offering: Offering, sequential: bool, tmp_path: Path
) -> None:
    settings = {
        **SETTINGS,
        "calibration": {**SETTINGS["calibration"], "sequential": sequential},
        "decompose": {"rank_multiple": 8},
        "quantize": {"method": "gptq"},
    }
    given, choice = recipe(**settings), at(offering, 6)
    made: dict[str, Any] = {}
    original = hybrid.compress_layer

    def keep(weight: Any, layer: Any, *args: Any, **options: Any) -> Any:
        found = original(weight, layer, *args, **options)
        if layer.quantization == choice.plan.layer(layer.name).quantization:
            made[layer.name] = found.replacement()
        return found

    stores: list[Store] = []
    compressed = hybrid.compress

    def watched(model: Any, store: Store, **options: Any) -> None:
        compressed(model, store, **options)
        stores.append(store)
        kept.update({record.name: store.replaced(record.name) for record in store.records()})

    kept: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hybrid, "compress_layer", keep)
        patch.setattr(hybrid, "compress", watched)
        checked(given, model, WINDOWS, offering, choice, tmp_path, "key")
    assert made
    for name, matrices in made.items():
        assert (matrices is None) == (kept[name] is None)
        for slot, matrix in (matrices or {}).items():
            assert torch.equal(matrix, kept[name][slot]), name
