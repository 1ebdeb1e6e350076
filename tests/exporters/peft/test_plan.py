"""What the format refuses, the bytes it counts, and the adapter's configuration."""

from __future__ import annotations

import subprocess
import sys

import pytest

from asvd_q.plan import Form, LayerPlan, Plan, QuantSpec, Slot
from asvd_q_exporters.peft import PeftExporter, PeftOptions
from asvd_q_exporters.peft.config import adapter_config

INT4 = QuantSpec(bits=4, group_size=32)
CODES = "model.layers.0.mlp.up_proj"
LAYER = "model.layers.0.self_attn.q_proj"


def corrected(
    weight: QuantSpec = INT4, b: QuantSpec | None = None, a: QuantSpec | None = None, rank: int = 5
) -> LayerPlan:
    return layer(LAYER, "correction", {"weight": weight, "B": b, "A": a}, rank)


def layer(
    name: str, form: Form, slots: dict[Slot, QuantSpec | None], rank: int | None = None
) -> LayerPlan:
    return LayerPlan(
        name=name, kind="x", block=0, shape=(64, 96), form=form, rank=rank, quantization=slots
    )


def refused(*layers: LayerPlan) -> list[str]:
    plan = Plan(float_type="float32", layers=layers)
    return [str(refusal) for refusal in PeftExporter().can_express(plan)]


def test_what_works_is_not_refused() -> None:
    """Any rank: an adapter packs nothing."""
    plain = layer(CODES, "dense", {"weight": None})
    for rank in (1, 7, 64):
        assert refused(corrected(rank=rank), plain) == []
    assert refused(corrected(), layer(CODES, "dense", {"weight": INT4})) == []


@pytest.mark.parametrize(
    ("found", "reason", "instead"),
    [
        (corrected(b=INT4), "its B is 4-bit codes of rtn", "floating point"),
        (corrected(a=QuantSpec(bits=8)), "its A is 8-bit codes of rtn", "onnx"),
        (corrected(QuantSpec(method="nf4", bits=4)), "what nf4 makes", "onnx"),
        (
            corrected().model_copy(update={"subclass": "FalconLinear"}),
            "is a FalconLinear",
            "compressed-tensors or onnx",
        ),
        (corrected(QuantSpec(bits=5, group_size=32)), "not 5", "bits 4"),
        (
            layer(LAYER, "factors", {"B": INT4, "A": INT4}, 32),
            "take the place of its weight",
            "gptq or onnx",
        ),
    ],
)
def test_refusals_name_the_layer_and_a_way_out(found: LayerPlan, reason: str, instead: str) -> None:
    (message,) = refused(found)
    assert message.startswith(f"{LAYER}: ")
    assert reason in message
    assert instead in message.rsplit(";", 1)[1]


def test_a_plan_without_a_correction_belongs_elsewhere() -> None:
    (message,) = refused(layer(LAYER, "dense", {"weight": INT4}))
    assert message.startswith("the model: no layer has a correction")
    assert "with gptq" in message


def test_settings_of_the_base_must_be_one() -> None:
    other = layer(CODES, "dense", {"weight": QuantSpec(bits=8, group_size=32)})
    (message,) = refused(corrected(), other)
    assert message.startswith(f"{CODES} (8 bits, groups of 32, symmetric): ")
    assert "gptqmodel" not in message  # whose loader takes no adapter of PEFT's


def test_bytes_by_hand() -> None:
    # Codes of 96 × 4 bits for 64 rows, 3 groups of scales and zero points, and the index.
    codes = 4 * 12 * 64 + 2 * 3 * 64 + 4 * 3 * 8 + 4 * 96
    floats = 5 * 96 + 64 * 5
    for dtype, size in (("float32", 4), ("bfloat16", 2), ("float16", 2)):
        exporter = PeftExporter(PeftOptions.model_validate({"dtype": dtype}))
        assert exporter.stored_bytes(corrected()) == codes + size * floats


def test_asking_loads_neither_torch_nor_peft() -> None:
    program = (
        "import sys\n"
        "from asvd_q_exporters.peft import PeftExporter\n"
        "from asvd_q.plan import LayerPlan, Plan, QuantSpec\n"
        "slots = {'weight': QuantSpec(bits=4), 'B': None, 'A': None}\n"
        "layer = LayerPlan(name='a', kind='a', block=0, shape=(32, 64), form='correction',\n"
        "                  rank=2, quantization=slots)\n"
        "exporter = PeftExporter()\n"
        "assert exporter.can_express(Plan(float_type='float32', layers=(layer,))) == []\n"
        "exporter.stored_bytes(layer)\n"
        "print(sorted({'torch', 'peft', 'transformers'} & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def test_ranks_that_differ_are_patterns_of_one_name_each() -> None:
    """PEFT's own matching, on names that are ends or near misses of one another."""
    from peft.utils.other import get_pattern_key

    ranks = {
        "model.layers.1.mlp.up_proj": 3,
        "model.layers.11.mlp.up_proj": 8,
        "model.layers.1.mlp_up_proj": 8,
        "model.layers.2.mlp.up_proj": 8,
        "layers.2.mlp.up_proj": 5,
        "up_proj": 7,
    }
    config = adapter_config(ranks, "base")
    assert config["r"] == config["lora_alpha"] == 8
    assert config["target_modules"] == list(ranks)
    for pattern, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        patterns = config[pattern]
        assert len(patterns) == 3
        for name, rank in ranks.items():
            key = get_pattern_key(patterns.keys(), name)
            assert patterns.get(key, config[default]) == rank
