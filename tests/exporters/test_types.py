"""What follows from the floating-point types of a checkpoint, whatever its format."""

from __future__ import annotations

import pytest

from asvd_q.exporter_registry import build_exporter
from asvd_q.plan import FloatType, LayerPlan, QuantSpec, store_bytes

FORMATS = ("bitsandbytes", "compressed-tensors", "gptq", "peft", "transformers")


@pytest.mark.parametrize("format", FORMATS)
def test_bounds_follow_the_coarsest_type(format: str) -> None:
    pairs: list[tuple[FloatType, FloatType | None]] = [
        ("float32", None),
        ("float16", None),
        ("bfloat16", None),
        ("float32", "bfloat16"),
    ]
    errors = [
        build_exporter(format, {"compute_dtype": compute, "dtype": stored}).bounds.relative_error
        for compute, stored in pairs
    ]
    assert errors[0] < errors[1] < errors[2] == errors[3]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("format", ["compressed-tensors", "gptq"])
def test_float_matrices_count_in_the_type_that_the_plan_predicted(
    format: str, dtype: FloatType
) -> None:
    layer = LayerPlan(
        name="model.layers.0.mlp.up_proj",
        kind="up_proj",
        block=0,
        shape=(64, 96),
        form="factors",
        rank=32,
        quantization={"B": None, "A": QuantSpec(bits=4, group_size=32)},
    )
    predicted = sum(
        store_bytes(shape, layer.quantization[slot], dtype)
        for slot, shape in layer.slot_shapes().items()
    )
    known = layer.model_copy(update={"predicted_bytes": predicted})
    default, chosen = build_exporter(format, {}), build_exporter(format, {"dtype": dtype})
    assert default.stored_bytes(known) == chosen.stored_bytes(layer)
