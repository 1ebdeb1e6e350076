"""What the checkpoint formats share before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from asvd_q.artefact import WHOLE_MODEL, ParityBounds, Refusal
from asvd_q.plan import FLOAT_BYTES, FloatType, Slot, store_bytes

if TYPE_CHECKING:
    from asvd_q.plan import LayerPlan, QuantSpec

__all__ = [
    "KERNEL_BOUNDS",
    "MODULES",
    "TORCH_BOUNDS",
    "CheckpointOptions",
    "coarsest",
    "coded_embeddings",
    "float_bytes",
    "layer_bytes",
    "nothing_quantized",
]

MODULES: Mapping[Slot, str] = {"weight": "", "B": ".BLinear", "A": ".ALinear"}
"""What a slot's module is called, after the name of its layer."""

KERNEL_BOUNDS: dict[FloatType, ParityBounds] = {
    "float32": ParityBounds(relative_error=5e-3, kl=1e-4, agreement=0.97),
    "float16": ParityBounds(relative_error=1e-2, kl=1e-3, agreement=0.95),
    "bfloat16": ParityBounds(relative_error=5e-2, kl=1e-2, agreement=0.9),
}
"""What a model that computes in each type may differ from the float32 reference.

Measured on a trained model of 6 blocks, ranks of one half and dense, 2 to 8 bits, 384 tokens:
relative error 3e-4 / 1.3e-3 / 1.2e-2, KL 7e-7 / 1.4e-5 / 1.2e-3, agreement 0.997 / 0.992 / 0.95.
The float32 row is not zero because gptqmodel multiplies codes by scales in float16. Random
models without training reach 1.2e-3 / 2.7e-3 / 2.4e-2.
"""

TORCH_BOUNDS = KERNEL_BOUNDS | {
    "float32": ParityBounds(relative_error=1e-5, kl=1e-6, agreement=0.99),
}
"""The same where the artefact's weights meet torch's own kernels, as the reference's do.

In float32 the measured difference is none.
"""


class CheckpointOptions(BaseModel):
    """Options of a checkpoint.

    Attributes:
        dtype: of everything that is not quantized, and what `config.json` tells loaders to
            compute in; left out, the source model's.
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


def layer_bytes(
    layer: LayerPlan,
    dtype: FloatType | None,
    coded: Callable[[tuple[int, int], QuantSpec], int],
) -> int:
    """Bytes of a layer's matrices, those in floating point and those in codes.

    Args:
        dtype: see `float_bytes`.
        coded: bytes of a matrix (out, in) with these settings.
    """
    return float_bytes(layer, dtype) + sum(
        coded(shape, spec)
        for slot, shape in layer.slot_shapes().items()
        if (spec := layer.quantization[slot]) is not None
    )


def nothing_quantized(layers: Iterable[LayerPlan], format: str) -> list[Refusal]:
    """What a format that needs codes says to a plan without any; nothing to others.

    Args:
        format: as a person calls it.
    """
    if any(spec for layer in layers for spec in layer.quantization.values()):
        return []
    why = f"no layer is quantized, and a {format} checkpoint needs at least one"
    return [Refusal(WHOLE_MODEL, why, "export it with transformers")]


def coded_embeddings(layers: Iterable[LayerPlan], format: str) -> list[Refusal]:
    """What a format with codes of linear layers alone says to embeddings in codes.

    Args:
        format: as a person calls it.
    """
    return [
        Refusal(
            layer.name,
            f"is an embedding, and a {format} checkpoint has codes of linear layers alone",
            "leave quantize.embedding out, or export it with transformers and dequantize: true"
            if layer.tied is None
            else f"leave quantize.embedding and quantize.head out ({layer.tied} has the same "
            "matrix), or export it with transformers and dequantize: true",
        )
        for layer in layers
        if layer.role == "embedding" and layer.changed
    ]


def coarsest(*types: FloatType | None) -> FloatType:
    """The type of those given that rounds most; None stands for one that rounds nothing."""
    order: tuple[FloatType, ...] = ("bfloat16", "float16", "float32")
    return next((name for name in order if name in types), "float32")
