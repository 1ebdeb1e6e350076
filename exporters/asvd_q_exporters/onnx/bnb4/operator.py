"""What `MatMulBnb4` can hold. Heavy modules are imported where they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from asvd_q.artefact import Refusal
from asvd_q_exporters.onnx.bnb4.layout import BLOCK_SIZES, bnb4_layout
from asvd_q_exporters.onnx.nodes import CONTRIB, MatrixNode, NarrowType, Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from asvd_q.plan import FloatType, QuantSpec
    from asvd_q.quantization import StoredWeight

__all__ = ["MatMulBnb4"]


class MatMulBnb4:
    """An `asvd_q_exporters.onnx.operators.Operator`.

    Double quantization is undone, because the operator takes one scale per block. It wants them
    in the type of its activations, and float16 would round them: it runs in float32 in every
    graph, between casts where the graph's own type is another.
    """

    has_levels: ClassVar[bool] = False

    def refusal(self, layer: str, shape: tuple[int, int], spec: QuantSpec) -> Refusal | None:
        """Wide blocks, and matrices beyond its counter, which it takes for zeros."""
        block = spec.group_size
        if block not in BLOCK_SIZES:
            return Refusal(
                layer,
                f"ONNX Runtime's MatMulBnb4 has no blocks of {block} weights",
                f"use group_size {min(BLOCK_SIZES, key=lambda size: abs(size - block))} "
                f"({', '.join(map(str, BLOCK_SIZES))} work)",
            )
        if not bnb4_layout(shape, spec).countable:
            return Refusal(
                layer,
                f"its matrix of {shape[0]} × {shape[1]} has more weights than ONNX Runtime's "
                "MatMulBnb4 can count (2³¹)",
                "quantize it with rtn or gptq",
            )
        return None

    def stored_bytes(self, shape: tuple[int, int], spec: QuantSpec, dtype: FloatType) -> int:
        """Codes, and scales in float32."""
        return bnb4_layout(shape, spec).nbytes

    def linear(
        self,
        shape: tuple[int, int],
        spec: QuantSpec,
        *,
        bias: bool,
        dtype: torch.dtype,
        accuracy_level: int,
    ) -> nn.Module:
        """See `asvd_q_exporters.onnx.operators.Operator`."""
        from asvd_q_exporters.onnx.bnb4.linear import Bnb4Linear

        return Bnb4Linear(bnb4_layout(shape, spec), bias, dtype)

    def node(
        self, shape: tuple[int, int], spec: QuantSpec, dtype: FloatType, accuracy_level: int
    ) -> MatrixNode:
        """See `asvd_q_exporters.onnx.operators.Operator`."""
        layout = bnb4_layout(shape, spec)
        parts = (Part(layout.packed_shape, "uint8"), Part(layout.absmax_shape, "float32"))
        attributes = tuple(layout.attributes.items())
        return MatrixNode(*shape, "MatMulBnb4", CONTRIB, attributes, parts, "float32")

    def narrow_type(self, part: str, spec: QuantSpec) -> NarrowType | None:
        """None: codes are packed into bytes, and their type is one of 8 bits."""
        return None

    def tensor(self, weight: StoredWeight, part: str, dtype: torch.dtype) -> Tensor:
        """See `asvd_q_exporters.onnx.operators.Operator`."""
        from asvd_q_exporters.onnx.bnb4.pack import bnb4_tensor

        return bnb4_tensor(weight, part)
