"""The table of kernel times: what is measured, what is kept, and when it holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asvd_q.artefact import TimedExporter
from asvd_q.budget import timing
from asvd_q.budget.counting import Count
from asvd_q.budget.format import format_count
from asvd_q.budget.offers import layer_offers
from asvd_q.budget.timing import KERNELS, KernelTimes, kernel_times
from asvd_q.errors import RecipeError
from asvd_q.exporter_registry import exporter_class, timed_exporters
from asvd_q.models.refs import WeightRef
from asvd_q.plan import LayerPlan, Plan, QuantSpec
from asvd_q.recipe import Recipe
from asvd_q_exporters.onnx import OnnxExporter
from tests.budget.timed import Timed, TimedOptions, count_of, expected

FOUR, EIGHT, TWO = (QuantSpec(bits=bits, group_size=32) for bits in (4, 8, 2))


def dense(spec: QuantSpec | None, shape: tuple[int, int] = (64, 48)) -> LayerPlan:
    return LayerPlan(name="q", kind="q", block=0, shape=shape, quantization={"weight": spec})


FACTORS = LayerPlan(
    name="q",
    kind="q",
    block=0,
    shape=(64, 48),
    form="factors",
    rank=16,
    quantization={"B": EIGHT, "A": FOUR},
)
CORRECTION = LayerPlan(
    name="q",
    kind="q",
    block=0,
    shape=(64, 48),
    form="correction",
    rank=8,
    quantization={"weight": TWO, "B": EIGHT, "A": None},
)


def test_a_layer_takes_the_time_of_all_its_matrices(tmp_path: Path) -> None:
    times = KernelTimes(count_of(Timed()), tmp_path)
    assert times.nanoseconds(dense(FOUR)) == expected((64, 48), FOUR)
    assert times.nanoseconds(dense(None)) == expected((64, 48), None)
    assert times.nanoseconds(FACTORS) == expected((16, 48), EIGHT) + expected((64, 16), FOUR)
    assert times.nanoseconds(CORRECTION) == (
        expected((64, 48), TWO) + expected((8, 48), EIGHT) + expected((64, 8), None)
    )


def test_a_model_takes_the_time_of_its_layers_and_its_head(tmp_path: Path) -> None:
    times = KernelTimes(count_of(Timed()), tmp_path, head=(500, 48))
    plan = Plan(float_type="float32", layers=(dense(FOUR), FACTORS, dense(FOUR)))
    assert times.total(plan) == (
        2 * times.nanoseconds(dense(FOUR)) + times.nanoseconds(FACTORS) + expected((500, 48), None)
    )
    assert KernelTimes(count_of(Timed()), tmp_path / "other").head == 0


def test_kernels_are_measured_once_together_and_kept(tmp_path: Path) -> None:
    first = Timed()
    times = KernelTimes(count_of(first), tmp_path, head=(500, 48))
    narrow = QuantSpec(bits=3, group_size=32)  # a kernel with that of 4 bits
    times.measure([dense(FOUR), dense(narrow), dense(FOUR), FACTORS])
    assert len(first.calls) == 1
    assert [shape for shape, _ in first.calls[0]] == [(64, 48), (16, 48), (64, 16), (500, 48)]
    times.nanoseconds(dense(narrow))
    times.measure([FACTORS])
    assert len(first.calls) == 1

    second = Timed()
    again = KernelTimes(count_of(second), tmp_path, head=(500, 48))
    again.measure([dense(FOUR), FACTORS, CORRECTION])
    assert [shape for shape, _ in second.calls[0]] == [(64, 48), (8, 48), (64, 8)]
    assert len(second.calls) == 1
    assert again.table.items() >= times.table.items()

    third = Timed()
    assert KernelTimes(count_of(third), tmp_path).nanoseconds(CORRECTION)
    assert not third.calls


@pytest.mark.parametrize(
    "changed", ["options", "runtime", "threads", "format", "damaged", "not json"]
)
def test_a_table_of_another_setting_is_measured_anew(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    KernelTimes(count_of(Timed()), tmp_path).measure([FACTORS])
    other = Timed(
        TimedOptions(level=4) if changed == "options" else None,
        "formula 1.1" if changed == "runtime" else "formula 1.0",
    )
    machine = timing._machine()
    if changed == "threads":
        moved = machine.model_copy(update={"threads": machine.threads + 1})
        monkeypatch.setattr(timing, "_machine", lambda: moved)
    elif changed == "format":
        other.name = "another"
    elif changed == "damaged":
        content = json.loads((tmp_path / KERNELS).read_text())
        content["nanoseconds"] |= {"64x48 8 bits": -5}
        (tmp_path / KERNELS).write_text(json.dumps(content))
    elif changed == "not json":
        (tmp_path / KERNELS).write_text('{"setting": ')
    times = KernelTimes(count_of(other), tmp_path)
    assert times.table == {}
    times.measure([dense(FOUR)])
    assert len(other.calls) == 1
    assert list(json.loads((tmp_path / KERNELS).read_text())["nanoseconds"]) == ["64x48 4 bits"]


def test_nothing_is_measured_when_only_what_is_known_counts(tmp_path: Path) -> None:
    exporter = Timed()
    times = KernelTimes(count_of(exporter), tmp_path / "search", known_only=True)
    with pytest.raises(RecipeError, match=r"budget\.decode_speed .* `asvd-q search`"):
        times.nanoseconds(FACTORS)
    assert not exporter.calls
    assert not (tmp_path / "search").exists()
    KernelTimes(count_of(exporter), tmp_path / "search").measure([FACTORS])
    known = KernelTimes(count_of(Timed()), tmp_path / "search", known_only=True)
    assert known.nanoseconds(FACTORS) == expected((16, 48), EIGHT) + expected((64, 16), FOUR)


def test_a_time_is_never_nothing(tmp_path: Path) -> None:
    class Fast(Timed):
        def decode_seconds(self, matrices: Any) -> list[float]:
            return [1e-12] * len(matrices)

    assert KernelTimes(count_of(Fast()), tmp_path).nanoseconds(FACTORS) == 2


@pytest.mark.parametrize("format", ["store", "transformers"])
def test_a_format_without_a_runtime_to_time_is_refused(format: str, tmp_path: Path) -> None:
    count = Count("float32")
    if format != "store":
        cls = exporter_class(format)
        count = Count("float32", cls(cls.options_model()))
    message = rf"the format {format} has none that can be timed: set budget.format to onnx$"
    with pytest.raises(RecipeError, match=message):
        KernelTimes(count, tmp_path)
    recipe = _recipe(decode_speed=100.0, format=format)
    refusal = message if format == "store" else "cannot hold layers that are quantized differently"
    with pytest.raises(RecipeError, match=refusal):
        format_count(recipe, "float32", ())


def test_bytes_alone_need_no_runtime() -> None:
    recipe = _recipe(size="1 GB", format="store")
    assert format_count(recipe, "float32", ()).name == "store"


def test_what_can_be_timed() -> None:
    assert timed_exporters() == ["onnx"]
    assert isinstance(OnnxExporter(), TimedExporter)


WEIGHTS = (
    WeightRef("model.layers.0.q", "model.layers.0.q", (64, 64), 0),
    WeightRef("model.layers.0.up", "model.layers.0.up", (96, 64), 0),
    WeightRef("lm_head", "lm_head", (500, 64), None),
)


def _recipe(**target: Any) -> Recipe:
    fields: dict[str, Any] = {
        "model": {"path": "somewhere"},
        "calibration": {"corpus": "python-docs"},
        "decompose": {"rank_multiple": 16},
        "quantize": {"method": "rtn"},
        "budget": {"bits": [2, 4, 8], "group_sizes": [32], "ranks": 2} | target,
    }
    return Recipe.model_validate(fields)


def test_all_that_a_recipe_offers_is_measured_in_one_go(tmp_path: Path) -> None:
    exporter, recipe = Timed(), _recipe(decode_speed=100.0)
    count = count_of(exporter)
    times = kernel_times(recipe, WEIGHTS, count, tmp_path)
    assert times is not None
    for weight in WEIGHTS[:2]:
        offers = layer_offers(weight, recipe, count)
        assert {offer.layer.form for offer in offers} >= {"dense", "factors"}
        assert all(times.cost(offer) > 0 for offer in offers)
    assert times.head == expected((500, 64), None)
    assert len(exporter.calls) == 1


def test_the_head_takes_the_time_of_its_form(tmp_path: Path) -> None:
    head = WEIGHTS[2]
    looked_up = WeightRef("embed", "embed", (500, 64), None, role="embedding")
    shared = replace(looked_up, tied="lm_head")
    for name, embedding, quantize in [
        ("untied", looked_up, {"embedding": {}, "head": {}}),
        ("tied", shared, {"embedding": {}}),
        ("by head", shared, {"head": {}}),
    ]:
        fields = _recipe(decode_speed=100.0).model_dump()
        recipe = Recipe.model_validate({**fields, "quantize": quantize})
        count = count_of(Timed())
        times = kernel_times(recipe, (embedding, *WEIGHTS), count, tmp_path / name)
        assert times is not None
        assert times.head == 0  # one of the layers now
        multiplied = head if embedding is looked_up else embedding
        for offer in layer_offers(multiplied, recipe, count):
            spec = offer.layer.quantization["weight"]
            assert times.cost(offer) == expected((500, 64), spec)
        if embedding is looked_up:
            offers = layer_offers(embedding, recipe, count)
            assert {times.cost(offer) for offer in offers} == {0}
    # Of an embedding alone: the head stays as it is.
    fields = _recipe(decode_speed=100.0).model_dump()
    recipe = Recipe.model_validate({**fields, "quantize": {"embedding": {}}})
    times = kernel_times(recipe, (looked_up, *WEIGHTS), count_of(Timed()), tmp_path)
    assert times is not None
    assert times.head == expected((500, 64), None)


def test_other_targets_measure_nothing(tmp_path: Path) -> None:
    for target in ({"size": "1 MB"}, {"bits_per_weight": 3.0}, {"max_loss_increase": 0.1}):
        assert kernel_times(_recipe(**target), WEIGHTS, Count("float32"), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_times_of_onnx_runtime_are_kept(tmp_path: Path) -> None:
    count = Count("float32", OnnxExporter())
    times = KernelTimes(count, tmp_path, head=(96, 48))
    layers = [dense(FOUR), dense(None), FACTORS, CORRECTION]
    times.measure(layers)
    first = [times.nanoseconds(layer) for layer in layers]
    assert min(first) > 0
    assert times.head > 0
    known = KernelTimes(count, tmp_path, head=(96, 48), known_only=True)
    assert [known.nanoseconds(layer) for layer in layers] == first
    content = json.loads((tmp_path / KERNELS).read_text())
    assert content["setting"]["format"] == "onnx"
    assert content["setting"]["options"]["accuracy_level"] == 4
    assert content["setting"]["runtime"].startswith("onnxruntime ")
    assert content["setting"]["machine"]["threads"] >= 1
