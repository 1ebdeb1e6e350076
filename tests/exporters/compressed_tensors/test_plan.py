"""What the format refuses, and the bytes it counts. Neither loads torch."""

from __future__ import annotations

import pytest

from asvd_q.budget.counting import Count
from asvd_q.plan import LayerPlan, Plan, QuantSpec, Slot
from asvd_q_exporters.compressed_tensors import (
    CompressedTensorsExporter,
    CompressedTensorsOptions,
)

INT4 = QuantSpec(bits=4, group_size=32)
NAME = "model.layers.0.q_proj"


def dense(
    spec: QuantSpec | None = INT4, shape: tuple[int, int] = (64, 96), transposed: bool = False
) -> LayerPlan:
    return LayerPlan(
        name=NAME,
        kind="x",
        block=0,
        shape=shape,
        transposed=transposed,
        quantization={"weight": spec},
    )


def pair(
    b: QuantSpec | None = INT4,
    a: QuantSpec | None = INT4,
    rank: int = 32,
    weight: QuantSpec | None = None,
    transposed: bool = False,
) -> LayerPlan:
    """Factors; with `weight`, a correction."""
    slots: dict[Slot, QuantSpec | None] = {"B": b, "A": a}
    return LayerPlan(
        name=NAME,
        kind="x",
        block=0,
        shape=(64, 96),
        transposed=transposed,
        form="correction" if weight else "factors",
        rank=rank,
        quantization={"weight": weight, **slots} if weight else slots,
    )


def refused(*layers: LayerPlan) -> list[str]:
    plan = Plan(float_type="float32", layers=layers)
    return [str(refusal) for refusal in CompressedTensorsExporter().can_express(plan)]


def test_what_works_is_not_refused() -> None:
    widths = [QuantSpec(bits=bits, group_size=16) for bits in range(2, 9)]
    sizes = [QuantSpec(group_size=size) for size in (-1, 16, 32, 48, 64, 128, 256)]
    assert refused(*(dense(spec) for spec in widths + sizes)) == []
    assert refused(*(pair(b, a) for b in widths for a in (None, *sizes))) == []
    assert refused(*(pair(b, None, 7, weight) for b in (None, INT4) for weight in widths)) == []
    assert refused(pair(transposed=True), pair(weight=INT4, transposed=True)) == []
    assert refused(dense(None, transposed=True), dense()) == []
    derived = {"subclass": "FalconLinear"}
    kept = (pair(), pair(weight=INT4), dense(None))
    assert refused(*(one.model_copy(update=derived) for one in kept), dense()) == []
    static = QuantSpec(method="gptq", group_size=32, act_order=True, static_groups=True)
    whole = QuantSpec(method="gptq", group_size=-1, act_order=True)
    assert refused(dense(static), dense(whole)) == []


@pytest.mark.parametrize(
    ("layer", "reason", "instead"),
    [
        (dense(QuantSpec(method="nf4")), "what nf4 makes", "onnx"),
        (
            dense().model_copy(update={"subclass": "FalconLinear"}),
            "is a FalconLinear",
            "decompose it",
        ),
        (pair(a=QuantSpec(symmetric=False)), "zero points", "symmetric: true"),
        (
            dense(QuantSpec(method="gptq", act_order=True, group_size=32)),
            "reordered",
            "static_groups: true",
        ),
        (dense(transposed=True), "Conv1D", "onnx"),
        (dense(QuantSpec(group_size=64), (64, 100)), "pieces of 4", "group_size 50"),
        (dense(QuantSpec(group_size=64), (64, 101)), "pieces of 1", "group_size 101"),
        (dense(QuantSpec(group_size=64), (64, 331)), "pieces of 1", "group_size -1"),
        (pair(weight=INT4, rank=40, a=QuantSpec(group_size=32)), "pieces of 8", "group_size 40"),
    ],
)
def test_refusals_name_the_layer_and_a_way_out(layer: LayerPlan, reason: str, instead: str) -> None:
    (found,) = refused(layer)
    assert found.startswith(f"{NAME}: ")
    assert reason in found
    assert instead in found.rsplit(";", 1)[1]


def test_nothing_quantized_belongs_elsewhere() -> None:
    (found,) = refused(dense(None), pair(None, None))
    assert found.startswith("the model: no layer is quantized")
    assert "transformers" in found


def test_a_budget_may_count_its_bytes() -> None:
    """Mixtures are held, and one layer alone may stay as it is."""
    count = Count("float16", CompressedTensorsExporter(CompressedTensorsOptions(dtype="float16")))
    assert count.refuses_mixtures() is None
    assert count.of_layer(dense(None)) == 2 * 64 * 96
    sizes = [count.of_layer(dense(QuantSpec(bits=bits, group_size=32))) for bits in range(2, 9)]
    assert sizes == [64 * 96 * bits // 8 + 2 * 64 * 3 + 16 for bits in range(2, 9)]


def test_bytes_by_hand() -> None:
    exporter = CompressedTensorsExporter()
    # Groups of 64 in 96 columns are written as three of 32.
    assert exporter.stored_bytes(dense(QuantSpec(bits=3, group_size=64))) == (
        4 * 64 * 9 + 2 * 64 * 3 + 16
    )
    b = 4 * 32 * 12 + 2 * 32 * 3 + 16
    a = 4 * 64 * 4 + 2 * 64 + 16
    assert exporter.stored_bytes(pair()) == a + b
    q = 4 * 64 * 6 + 2 * 64 * 3 + 16
    two = QuantSpec(bits=2, group_size=32)
    assert exporter.stored_bytes(pair(weight=two)) == q + a + b
    half = CompressedTensorsExporter(CompressedTensorsOptions(dtype="float16"))
    assert half.stored_bytes(pair(b=None, rank=7, weight=two, a=None)) == q + 2 * 7 * (64 + 96)
    odd = dense(QuantSpec(bits=5, group_size=-1), (3, 33))
    assert exporter.stored_bytes(odd) == 4 * 3 * 6 + 2 * 3 + 16
