"""What the format refuses, and the bytes it counts. Neither loads torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from asvd_q.plan import Form, LayerPlan, Plan, QuantSpec, Slot
from asvd_q_exporters.bitsandbytes import BitsAndBytesExporter, BitsAndBytesOptions

NF4 = QuantSpec(method="nf4", group_size=64)
DOUBLE = QuantSpec(method="nf4", group_size=64, double_quant=True)
NAME = "model.layers.0.mlp.up_proj"


def layer(
    shape: tuple[int, int] = (128, 192),
    rank: int | None = None,
    *,
    form: Form | None = None,
    **specs: QuantSpec | None,
) -> LayerPlan:
    chosen = form or ("dense" if rank is None else "factors")
    slots: dict[Slot, QuantSpec | None] = {"weight": NF4, "B": NF4, "A": NF4}
    slots |= specs  # type: ignore[arg-type]
    kept: dict[Form, tuple[Slot, ...]] = {
        "dense": ("weight",),
        "factors": ("B", "A"),
        "correction": ("weight", "B", "A"),
    }
    return LayerPlan(
        name=NAME,
        kind="up_proj",
        block=0,
        shape=shape,
        form=chosen,
        rank=rank,
        quantization={slot: slots[slot] for slot in kept[chosen]},
    )


def plan(*layers: LayerPlan) -> Plan:
    return Plan(float_type="float32", layers=layers)


def refused(*layers: LayerPlan) -> list[str]:
    return [str(refusal) for refusal in BitsAndBytesExporter().can_express(plan(*layers))]


def test_what_works_is_not_refused() -> None:
    assert refused(layer(), layer(rank=64), layer(weight=None), layer(rank=64, A=None)) == []
    assert refused(layer(rank=17, A=None, B=None), layer(weight=DOUBLE)) == []
    assert refused(layer(rank=32, A=None), layer(rank=64, A=DOUBLE)) == []
    assert refused(layer((64, 4096), weight=QuantSpec(method="nf4", group_size=4096))) == []
    assert refused(layer(), layer((50257, 100), weight=None)) == []
    derived = {"subclass": "FalconLinear"}
    kept = (layer(rank=64), layer(weight=None))
    assert refused(layer(), *(one.model_copy(update=derived) for one in kept)) == []


@pytest.mark.parametrize(
    ("found", "reason", "instead"),
    [
        (layer(weight=QuantSpec(bits=3, group_size=64)), "3-bit codes that rtn", "gptq or onnx"),
        (layer(rank=64, A=QuantSpec(method="gptq", bits=4)), "4-bit codes that gptq", "nf4"),
        (
            layer().model_copy(update={"subclass": "FalconLinear"}),
            "is a FalconLinear",
            "decompose it",
        ),
        (layer((128, 96)), "128 × 96 in blocks of 64", "use group_size 32"),
        (
            layer((128, 768), weight=QuantSpec(method="nf4", group_size=1024)),
            "768 in blocks of 1024",
            "use group_size 256",
        ),
        (layer(rank=96), "A of 128 × 96 in blocks of 64", "use rank_multiple 64, or 32 with"),
        (layer(rank=33, A=None), "B of 33 × 192", "use rank_multiple 64"),
        (layer((128, 96), rank=64), "B of 64 × 96", "use group_size 32"),
        (layer((48, 64)), "32 output channels", "leave it in floating point"),
        (layer((64, 80)), "in blocks of 64", "leave it in floating point"),
        (layer(rank=32, form="correction"), "a corrected one", "export it with onnx"),
    ],
)
def test_refusals_name_the_layer_and_a_way_out(found: LayerPlan, reason: str, instead: str) -> None:
    (message,) = refused(layer(), found)
    assert message.startswith(NAME)
    assert reason in message
    assert instead in message.rsplit("; ", 1)[1]


def test_nothing_quantized_belongs_elsewhere() -> None:
    (message,) = refused(layer(weight=None))
    assert "no layer is quantized" in message
    assert "transformers" in message


def test_bytes_by_hand() -> None:
    exporter = BitsAndBytesExporter(BitsAndBytesOptions(dtype="float32"))
    state = len('{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [128, 192]}')
    codes, blocks = 128 * 192 // 2, 128 * 192 // 64
    assert exporter.stored_bytes(layer()) == codes + 4 * blocks + 4 * 16 + state
    nested = ', "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": '
    double = codes + blocks + 4 * 2 + 4 * 256 + 4 * 16 + state + len(nested) + 24
    assert exporter.stored_bytes(layer(weight=DOUBLE)) == double
    assert exporter.stored_bytes(layer(weight=None)) == 4 * 128 * 192
    mixed = exporter.stored_bytes(layer(rank=64, B=None))
    assert mixed == 4 * 64 * 192 + 128 * 64 // 2 + 4 * 128 + 4 * 16 + state - 1  # [128, 64]


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys, asvd_q_exporters.bitsandbytes as b; b.BitsAndBytesExporter();"
        "print([n for n in ('torch', 'transformers', 'bitsandbytes') if n in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
