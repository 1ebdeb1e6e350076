"""What the checkpoint formats share before anything heavy is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from asvd_q.plan import FLOAT_BYTES, FloatType, store_bytes

if TYPE_CHECKING:
    from asvd_q.plan import LayerPlan

__all__ = ["CheckpointOptions", "float_bytes"]


class CheckpointOptions(BaseModel):
    """Options of a checkpoint.

    Attributes:
        dtype: of everything that is not quantized, and what `config.json` tells loaders to
            compute in; None keeps the source model's.
        compute_dtype: in which `open` runs the model, for evaluation and proof.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: FloatType | None = None
    compute_dtype: FloatType = "float32"


def float_bytes(layer: LayerPlan, dtype: FloatType | None) -> int:
    """Bytes of a layer's matrices that stay in floating point.

    Args:
        dtype: they are written in; None is the plan's own float type. A layer plan does not
            carry that, but its `predicted_bytes` count these matrices in it, next to the
            quantized ones. Where there is no prediction yet, two bytes each are assumed.
    """
    shapes = layer.slot_shapes()
    quantized = {slot: spec for slot, spec in layer.quantization.items() if spec is not None}
    numel = sum(rows * columns for slot, (rows, columns) in shapes.items() if slot not in quantized)
    if dtype is not None or not numel:
        return numel * FLOAT_BYTES[dtype or "float32"]
    if not layer.predicted_bytes:
        return numel * FLOAT_BYTES["bfloat16"]
    codes = sum(store_bytes(shapes[slot], spec, "float16") for slot, spec in quantized.items())
    return layer.predicted_bytes - codes
