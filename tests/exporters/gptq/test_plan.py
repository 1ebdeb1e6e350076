"""What the format refuses, and the bytes it counts. Neither loads torch."""

from __future__ import annotations

from typing import Literal

import pytest

from asvd_q.plan import LayerPlan, Plan, QuantSpec, Slot
from asvd_q_exporters.gptq import GptqExporter, GptqOptions

INT4 = QuantSpec(bits=4, group_size=32)

Loader = Literal["transformers", "gptqmodel"]


def factors(
    name: str = "model.layers.0.q_proj",
    shape: tuple[int, int] = (64, 96),
    rank: int = 32,
    a: QuantSpec | None = INT4,
    b: QuantSpec | None = INT4,
) -> LayerPlan:
    slots: dict[Slot, QuantSpec | None] = {"B": b, "A": a}
    return LayerPlan(
        name=name, kind="x", block=0, shape=shape, form="factors", rank=rank, quantization=slots
    )


def dense(
    name: str = "model.layers.0.k_proj",
    shape: tuple[int, int] = (64, 96),
    spec: QuantSpec | None = INT4,
    block: int | None = 0,
    subclass: str | None = None,
) -> LayerPlan:
    return LayerPlan(
        name=name,
        kind="x",
        block=block,
        shape=shape,
        subclass=subclass,
        quantization={"weight": spec},
    )


def exporter_for(loader: Loader) -> GptqExporter:
    return GptqExporter(GptqOptions(loader=loader))


def refused(*layers: LayerPlan, loader: Loader = "transformers") -> list[str]:
    plan = Plan(float_type="float32", layers=layers)
    return [str(refusal) for refusal in exporter_for(loader).can_express(plan)]


def test_what_works_is_not_refused() -> None:
    assert refused(factors(), dense()) == []
    assert refused(factors(b=None), dense(spec=None), dense("lm_head", spec=None, block=None)) == []
    for bits in (2, 3, 4, 8):
        for group_size in (-1, 16, 32, 64, 128, 256):
            for symmetric in (True, False):
                spec = QuantSpec(bits=bits, group_size=group_size, symmetric=symmetric)
                assert refused(dense(spec=spec), factors(a=spec, b=spec)) == []
    assert refused(dense(spec=INT4), factors(b=INT4.model_copy(update={"method": "gptq"}))) == []


def test_factors_and_floats_of_any_class_are_held() -> None:
    derived = factors("model.layers.0.o_proj").model_copy(update={"subclass": "FalconLinear"})
    assert refused(derived, dense(spec=None, subclass="FalconLinear")) == []
    assert refused(dense(subclass="FalconLinear"), loader="gptqmodel") == []


@pytest.mark.parametrize(
    ("layer", "reason", "instead"),
    [
        (dense(spec=QuantSpec(method="nf4", bits=4)), "what nf4 makes", "onnx"),
        (dense(spec=QuantSpec(bits=5)), "not 5", "bits 4"),
        (dense(spec=QuantSpec(bits=6)), "not 6", "bits 8"),
        (dense(spec=QuantSpec(group_size=48)), "groups of 48", "group_size 32"),
        (dense(spec=QuantSpec(group_size=200)), "groups of 200", "group_size 256"),
        (factors(rank=24), "matrix B of 24 × 96", "rank_multiple 32"),
        (factors(rank=24, b=None), "matrix A of 64 × 24", "rank_multiple 32"),
        (factors(shape=(80, 64)), "matrix A of 80 × 32", "leave it in floating point"),
        (dense(shape=(64, 100)), "multiple of 32", "leave it in floating point"),
        (dense("lm_head", block=None), "blocks alone", "floating point"),
        (dense(subclass="FalconLinear"), "is a FalconLinear", "loader: gptqmodel"),
    ],
)
def test_refusals_name_the_layer_and_a_way_out(layer: LayerPlan, reason: str, instead: str) -> None:
    found = refused(layer)
    assert found
    assert found[0].startswith(layer.name)
    assert reason in found[0]
    assert instead in found[0].rsplit(";", 1)[1]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (QuantSpec(bits=8, group_size=32), "8 bits, groups of 32, symmetric"),
        (QuantSpec(bits=4, group_size=64), "4 bits, groups of 64, symmetric"),
        (QuantSpec(bits=4, group_size=-1), "4 bits, one group per channel, symmetric"),
        (QuantSpec(bits=4, group_size=32, symmetric=False), "4 bits, groups of 32, asymmetric"),
    ],
)
def test_all_settings_that_differ_are_named(other: QuantSpec, words: str) -> None:
    float_layer = dense("model.layers.1.mlp.up", spec=None)
    others = [dense(f"model.layers.{index}.mlp.down", spec=other) for index in (0, 1, 2, 5)]
    same = [dense(f"model.layers.{index}.mlp.up", spec=INT4) for index in range(6)]
    (found,) = refused(*others, float_layer, factors(a=other), *same)
    named, rest = found.split(": ", 1)
    assert named == (f"model.layers.{{0-2,5}}.mlp.down, model.layers.0.q_proj.ALinear ({words})")
    assert "4 bits, groups of 32, symmetric" in rest
    for way in ("loader: gptqmodel", "onnx", "compressed-tensors"):
        assert way in rest
    assert refused(*others, factors(a=other), *same, loader="gptqmodel") == []


def test_a_layer_that_no_loader_takes_is_refused_for_gptqmodel_too() -> None:
    (found,) = refused(dense(), dense("b", spec=QuantSpec(bits=5)), loader="gptqmodel")
    assert found.startswith("b: ")
    assert "not 5" in found


def test_a_correction_is_refused() -> None:
    layer = LayerPlan(
        name="model.layers.0.q_proj",
        kind="x",
        block=0,
        shape=(64, 96),
        form="correction",
        rank=32,
        quantization={"weight": INT4, "B": None, "A": INT4},
    )
    (found,) = refused(dense(), layer)
    assert found.startswith("model.layers.0.q_proj: ")
    assert "correction" in found
    assert "peft or onnx" in found


def test_nothing_quantized_belongs_elsewhere() -> None:
    (found,) = refused(dense(spec=None))
    assert found.startswith("the model: no layer is quantized")
    assert "transformers" in found


def test_bytes_by_hand() -> None:
    exporter = GptqExporter()
    # 96 × 4 / 32 words for each of 64 columns, 3 groups of 64 scales and 8 words, 96 indices
    assert exporter.stored_bytes(dense()) == 4 * 12 * 64 + 2 * 3 * 64 + 4 * 3 * 8 + 4 * 96
    b = 4 * 12 * 32 + 2 * 3 * 32 + 4 * 3 * 4 + 4 * 96
    a = 4 * 4 * 64 + 2 * 64 + 4 * 8 + 4 * 32
    assert exporter.stored_bytes(factors()) == a + b
    half = GptqExporter(GptqOptions(dtype="float16"))
    assert half.stored_bytes(factors(b=None)) == a + 2 * 32 * 96
    assert half.stored_bytes(dense(spec=None)) == 2 * 64 * 96
