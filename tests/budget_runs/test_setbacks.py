"""A budget that a layer's failure broke is met by the others, or said to be out of reach."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from asvd_q import rounds
from asvd_q.budget.solving import BudgetResult
from asvd_q.errors import RankError
from asvd_q.pipeline import prepare_known, run, search
from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q.preparation import Prepared
from asvd_q.report.run import RunRecord
from asvd_q.search.planning import plan_layer
from tests.budget.given import dense, layer_ref
from tests.budget.given import recipe as given
from tests.budget_runs.given import (
    NAME,
    OTHER_BYTES,
    WEIGHTS,
    Make,
    layer_bytes,
    open_store,
    stages,
)
from tests.compression.job import quiet


def assert_pinned(record: RunRecord, reason: str) -> None:
    (kept,) = (one for one in record.layers if one.name == NAME)
    assert set(kept.quantization.values()) == {None}
    assert reason in (kept.reason or "")
    assert len(record.warnings) >= 2
    assert record.warnings[-1].startswith("the target was solved again around ")


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize("target", [{"size": f"{OTHER_BYTES + 11_000} B"}, {"bits_per_weight": 7}])
def test_a_setback_is_made_up_for(
    target: dict[str, Any], make: Make, compressed: list[str]
) -> None:
    recipe = make(target)
    record = run(recipe, quiet)
    assert stages(record) == ["prepare", *2 * ["search", "compress"], "evaluate"]
    assert_pinned(record, "its quantization failed: no codes")
    assert "in float32: its quantization failed: no codes" in record.warnings[0]
    store = open_store(recipe)
    assert layer_bytes(store) == record.layer_bytes.after
    if "size" in target:
        assert record.total_bytes.after <= OTHER_BYTES + 11_000
    else:
        assert 8 * record.layer_bytes.after <= 7 * WEIGHTS
    assert store.plan == store.finished_plan
    count = len(compressed)
    again = run(recipe, quiet)
    assert len(compressed) == count
    assert (again.layers, again.warnings) == (record.layers, record.warnings)
    prepared, _ = prepare_known(recipe)
    assert prepared.plan == store.plan


def test_a_bound_on_the_error_of_single_layers(make: Make) -> None:
    found = search(make({"bits_per_weight": 6}), quiet)
    assert isinstance(found, BudgetResult)
    override = [{"match": NAME, "symmetric": False}]
    recipe = make(
        {"bits_per_weight": 6},
        quantize={"method": "rtn", "max_error": 0.12, "overrides": override},
    )
    record = run(recipe, quiet)
    assert 8 * record.layer_bytes.after <= 6 * WEIGHTS
    assert all(
        "quantize.max_error" in (one.reason or "")
        for one in record.layers
        if None in one.quantization.values()
    )


@pytest.mark.usefixtures("failing")
def test_a_setback_under_a_bound_on_the_loss(make: Make) -> None:
    """A layer that keeps more than was planned loses no more."""
    record = run(make({"max_loss_increase": 0.05}), quiet)
    assert stages(record) == ["prepare", "search", "compress", "evaluate"]
    assert len(record.warnings) == 1


@pytest.mark.usefixtures("failing")
def test_a_target_that_a_setback_puts_out_of_reach(make: Make) -> None:
    with pytest.raises(RankError, match=rf"^budget: .* cannot be reached: .*, around {NAME}$"):
        run(make({"bits_per_weight": 4}, decompose=None), quiet)


def test_a_lost_correction_breaks_a_bound_on_the_loss() -> None:
    ref = layer_ref((64, 64))
    codes = QuantSpec(bits=2, group_size=16)
    planned = plan_layer(ref, {"weight": codes, "B": None, "A": None}, 8, "float32")
    plan = Plan(float_type="float32", layers=(planned,))
    prepared = SimpleNamespace(recipe=given(budget={"max_loss_increase": 0.01}))

    def met(setback: LayerPlan) -> bool:
        return rounds._meets(cast(Prepared, prepared), plan, {ref.name: setback}, Path())

    assert met(dense(ref, None))  # floats lose nothing
    assert not met(dense(ref, codes))
