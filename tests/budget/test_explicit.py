"""A choice written out as a recipe makes the plan that was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from asvd_q.budget.choice import Offering, choose
from asvd_q.budget.counting import Count
from asvd_q.budget.explicit import with_plan
from asvd_q.budget.offers import Offer, layer_offers
from asvd_q.budget.solving import BudgetResult
from asvd_q.budget.sweep import LayerTried
from asvd_q.models import SourceModel
from asvd_q.models.skeleton import Skeleton, build_skeleton
from asvd_q.plan import Plan
from asvd_q.recipe import Recipe, load_recipe
from asvd_q.report.budget import write_budget
from asvd_q.search.allocation import LossBound
from asvd_q.search.planning import make_plan
from tests.budget.given import dense, recipe, without_reasons
from tests.models.families import save_family

BUDGET: dict[str, Any] = {
    "bits_per_weight": 4,
    "bits": [2, 3, 4, 8],
    "group_sizes": [16, 32],
    "ranks": 3,
    "correction_ranks": [2, 4],
}
COUNT = Count("float32")
Model = tuple[SourceModel, Skeleton]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = save_family(request.param, tmp_path_factory.mktemp("model"))
    source = SourceModel.open(str(folder))
    return source, build_skeleton(source)


def budget_recipe(model: Model, **sections: Any) -> Recipe:
    given = {"quantize": {"method": "gptq", "group_size": 64}, "decompose": {"rank_multiple": 4}}
    fields = {"model": {"path": str(model[0].path)}, "budget": BUDGET}
    return recipe(**(fields | given | sections))


def random_plan(given: Recipe, model: Model, seed: int) -> Plan:
    """Any of the forms on offer for every layer."""
    rng = np.random.default_rng(seed)
    source, skeleton = model
    floats = given.model_copy(
        update={"budget": None, "decompose": None, "quantize": None, "correct": None}
    )
    base = make_plan(floats, source, skeleton, "float32")
    layers = {}
    for weight in skeleton.weights:
        if weight.block is not None:
            offers = layer_offers(weight, given, COUNT)
            layers[weight.name] = offers[int(rng.integers(len(offers)))].layer
    return base.with_layers(layers)


def assert_same(given: Recipe, plan: Plan, model: Model) -> None:
    made = make_plan(given, *model, "float32")
    assert without_reasons(made) == without_reasons(plan)
    assert (made.float_type, made.other_bytes) == (plan.float_type, plan.other_bytes)


SECTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rtn": {"quantize": {"method": "rtn"}},
    "nf4": {"quantize": {"method": "nf4"}},
    "no factors": {"decompose": None},
    "corrections": {"correct": {}},
    "corrections alone": {"correct": {}, "decompose": None},
    "layers left out": {
        "decompose": {"rank_multiple": 4, "exclude": ["*.0.*"]},
        "quantize": {"method": "gptq", "exclude": ["*.1.*"]},
    },
    "no dense codes": {"quantize": {"dense": False}},
    "one factor apart": {
        "quantize": {"method": "gptq", "factors": {"B": {"method": "rtn", "symmetric": False}}}
    },
    "overrides": {
        "quantize": {
            "method": "gptq",
            "overrides": [
                {"match": "*.0.*", "clip": "minmax", "bits": 5},
                {"match": "*.1.*", "slot": "A", "damping": 0.2, "group_size": 32},
                {"match": "*.1.*", "slot": "weight", "skip": True},
            ],
        }
    },
}


@pytest.mark.parametrize("sections", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize("seed", range(2))
def test_the_same_plan(sections: dict[str, Any], seed: int, model: Model, tmp_path: Path) -> None:
    given = budget_recipe(model, **sections)
    plan = random_plan(given, model, seed)
    explicit = with_plan(given, plan)
    assert explicit.budget is None
    assert not explicit.searches
    assert_same(explicit, plan, model)
    path = tmp_path / "recipe.yaml"
    path.write_text(explicit.resolved_yaml(), encoding="utf-8")
    assert_same(load_recipe(path), plan, model)


@pytest.mark.parametrize("sections", SECTIONS.values(), ids=SECTIONS)
def test_all_layers_in_floats(sections: dict[str, Any], model: Model, tmp_path: Path) -> None:
    given = budget_recipe(model, **sections)
    floats = given.model_copy(
        update={"budget": None, "decompose": None, "quantize": None, "correct": None}
    )
    plan = make_plan(floats, *model, "float32")
    explicit = with_plan(given, plan)
    assert_same(explicit, plan, model)
    path = tmp_path / "recipe.yaml"
    path.write_text(explicit.resolved_yaml(), encoding="utf-8")
    assert_same(load_recipe(path), plan, model)


def test_what_the_recipe_says_already_is_not_said_again(model: Model) -> None:
    given = budget_recipe(model, quantize={"method": "gptq", "bits": 3, "group_size": 16})
    assert given.quantize is not None
    plan = make_plan(
        given.model_copy(update={"budget": None, "decompose": None}), *model, "float32"
    )
    assert with_plan(given, plan).quantize == given.quantize


def result_of(plan: Plan) -> BudgetResult:
    """A result whose choice is the plan."""
    tried = {layer.name: LayerTried([(Offer(layer, layer.predicted_bytes), 0.0)]) for layer in plan}
    offering = Offering.of(plan, tried, COUNT, {})
    return BudgetResult(tried, offering, choose(offering, LossBound(1.0)))


@pytest.mark.parametrize("sections", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize("floats", [False, True])
def test_the_plan_that_is_left_behind(
    sections: dict[str, Any],
    floats: bool,
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pasted into the recipe in the place of its budget, behind its own overrides."""
    for name in ("plot_budgets", "front"):  # neither is looked at
        monkeypatch.setattr(f"asvd_q.report.budget.{name}", lambda *args, **options: [])
    given = budget_recipe(model, **sections)
    plan = random_plan(given, model, 7)
    if floats:
        inside = [weight for weight in model[1].weights if weight.block is not None]
        plan = plan.with_layers({weight.name: dense(weight, None) for weight in inside})
    result = result_of(plan)
    assert without_reasons(result.choice.plan) == without_reasons(plan)
    write_budget(result, tmp_path)
    found = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    fields = yaml.safe_load(given.resolved_yaml())
    del fields["budget"]
    for name, section in found.items():
        if section is None:
            fields[name] = None
            continue
        own = dict(fields.get(name) or {})
        overrides = [*own.get("overrides", []), *section.get("overrides", [])]
        fields[name] = own | section | ({"overrides": overrides} if overrides else {})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    assert_same(load_recipe(path), plan, model)
